"""Arms, metrics, caps, segments and weights as they are written in flags, as the values of a plan's file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.cli.errors import MISUSED, CliError

KINDS = ("proportion", "mean", "ratio")
# What the server records by itself; less is better of all. Of what is 0 or 1 for an answer, the share of
# units that had it once: a proportion is exact from the first unit on, and shows that nothing happened, too.
SHORT_BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "time_to_first_token": {"kind": "mean", "aggregate": "mean"},
    "total_time": {"kind": "mean", "aggregate": "mean"},
    "completion_tokens": {"kind": "mean", "aggregate": "mean"},
    "length_stop": {"kind": "proportion"},
    "error": {"kind": "proportion"},
    "cancelled": {"kind": "proportion"},
}


def arms_of(texts: Sequence[str], split: str = "") -> list[dict[str, Any]]:
    """NAME=ADAPTER@VERSION[:WEIGHT]. Weights are equal unless said, there or by `split`."""
    arms = [_arm(text) for text in texts]
    if split:
        if any(arm["weight"] is not None for arm in arms):
            raise CliError("weights are said twice: take them out of --arm, or leave --split out", MISUSED)
        return split_arms(arms, split)
    said = [arm["weight"] for arm in arms if arm["weight"] is not None]
    silent = len(arms) - len(said)
    share = (1 - sum(said)) / silent if silent else 0.0  # what the others leave
    return [arm | {"weight": share if arm["weight"] is None else arm["weight"]} for arm in arms]


def split_arms(arms: Sequence[Mapping[str, Any]], split: str) -> list[dict[str, Any]]:
    """The arms with the weights of `90/10`, in their order."""
    weights = weights_of(split)
    if len(weights) != len(arms):
        what = f"{len(weights)} weights, and there are {len(arms)} arms"
        raise CliError(f"--split {split} has {what}: one for each, control first", MISUSED)
    return [dict(arm) | {"weight": weight} for arm, weight in zip(arms, weights, strict=True)]


def weights_of(split: str, flag: str = "--split") -> tuple[float, ...]:
    """`90/10` as shares that sum to 1."""
    parts = [number(part, flag) for part in split.split("/")]
    if len(parts) < 2 or not all(part > 0 and math.isfinite(part) for part in parts):
        raise CliError(f"{flag} takes shares above 0 such as 90/10, control first, not {split!r}", MISUSED)
    total = math.fsum(parts)
    return tuple(part / total for part in parts)


def _arm(text: str) -> dict[str, Any]:
    name, equals, rest = text.partition("=")
    adapter, _, weight = rest.partition(":")
    if not (equals and name and adapter):
        raise CliError(f"--arm takes NAME=ADAPTER@VERSION[:WEIGHT] or NAME=base, not {text!r}", MISUSED)
    return {"name": name, "adapter": adapter, "weight": number(weight, "--arm") if weight else None}


def metric_of(text: str) -> dict[str, Any]:
    """NAME, KIND:NAME or NAME:KIND. Built-in metrics have their kind, others are proportions."""
    first, _, second = text.partition(":")
    kind, name = (first, second) if second and first in KINDS and second not in KINDS else (second, first)
    made = _named(name)
    if not kind or kind == made["kind"]:
        return made
    return {"name": name, "kind": kind, "higher_is_better": made["higher_is_better"]}


def _named(name: str) -> dict[str, Any]:
    built_in = SHORT_BUILT_IN.get(name)
    if built_in is None:
        return {"name": name, "kind": "proportion", "higher_is_better": True}
    return {"name": name, **built_in, "higher_is_better": False}


def guardrail_of(text: str) -> dict[str, Any]:
    """METRIC=MARGIN; 10% is of control's value."""
    name, equals, margin = text.partition("=")
    if not equals:
        raise CliError(f"--guardrail takes METRIC=MARGIN, such as total_time=10%, not {text!r}", MISUSED)
    relative = margin.endswith("%")
    value = number(margin.removesuffix("%"), "--guardrail")
    return metric_of(name) | {"margin": value / 100 if relative else value, "relative": relative}


def segment_of(text: str) -> dict[str, Any]:
    """LABEL or LABEL=a,b,c."""
    label, equals, values = text.partition("=")
    named = [value.strip() for value in values.split(",")] if equals else []
    if not label or not all(named):
        raise CliError(f"--segment takes LABEL or LABEL=a,b,c, not {text!r}", MISUSED)
    return {"label": label, "values": named}


def capped(values: Mapping[str, Any], caps: Sequence[str]) -> dict[str, Any]:
    """The fields of a plan in which a metric gets its cap, METRIC=VALUE, with that cap."""
    made = {name: values[name] for name in ("primary", "guardrails", "secondary") if values.get(name)}
    changed: set[str] = set()
    for text in caps:
        name, equals, value = text.partition("=")
        if not equals:
            raise CliError(f"--cap takes METRIC=VALUE, such as total_time=60, not {text!r}", MISUSED)
        cap, there = number(value, "--cap"), set(changed)
        for field, metrics in made.items():
            several = field != "primary"
            found = [
                m | {"cap": cap} if m.get("name") == name else m for m in (metrics if several else [metrics])
            ]
            if found != (metrics if several else [metrics]):
                there.add(field)
            made[field] = found if several else found[0]
        if not any(m.get("name") == name for m in _metrics(made)):
            names = ", ".join(str(m.get("name")) for m in _metrics(made)) or "none"
            raise CliError(
                f"--cap {text}: no metric of the plan is called {name!r}; there are: {names}", MISUSED
            )
        changed = there
    return {field: made[field] for field in changed}


def _metrics(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for field, metrics in values.items():
        yield from [metrics] if field == "primary" else metrics


def number(text: str, flag: str) -> float:
    """Raises CliError for what is none."""
    try:
        return float(text)
    except ValueError:
        raise CliError(f"{flag}: {text!r} is not a number", MISUSED) from None
