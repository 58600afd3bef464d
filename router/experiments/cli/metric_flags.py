"""Metrics, caps and labels from flags: `KIND:NAME`, `METRIC=MARGIN`, `METRIC=VALUE`, `LABEL=a,b`. What
built-in metrics are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.cli.command import MISUSED, CliError

BETTER = "better"


def metric_from_flag(text: str) -> dict[str, Any]:
    """NAME, KIND:NAME or NAME:KIND. Built-in metrics have their kind, others are proportions."""
    from router.experiments.model import Kind, known_metric

    first, _, second = text.partition(":")
    kinds = tuple(Kind)
    kind, name = (first, second) if second and first in kinds and second not in kinds else (second, first)
    return {"name": name, "kind": kind or known_metric(name).get("kind", Kind.PROPORTION.value)}


def guardrail_from_flag(text: str) -> dict[str, Any]:
    """METRIC=MARGIN; 10% is of control's value. METRIC=better: it must be shown to be better."""
    name, equals, margin = text.partition("=")
    if not equals:
        example = "total_time_over_4s=0.02"
        raise CliError(f"--guardrail takes METRIC=MARGIN, such as {example}, not {text!r}", MISUSED)
    if margin == BETTER:
        return metric_from_flag(name) | {"improve": True}
    relative = margin.endswith("%")
    value = number_from_flag(margin.removesuffix("%"), "--guardrail")
    return metric_from_flag(name) | {"margin": value / 100 if relative else value, "relative": relative}


def segment_from_flag(text: str) -> dict[str, Any]:
    """LABEL or LABEL=a,b,c."""
    label, equals, values = text.partition("=")
    named = [value.strip() for value in values.split(",")] if equals else []
    if not label or not all(named):
        raise CliError(f"--segment takes LABEL or LABEL=a,b,c, not {text!r}", MISUSED)
    return {"label": label, "values": named}


def number_from_flag(text: str, flag: str) -> float:
    """Raises CliError for what is none."""
    try:
        return float(text)
    except ValueError:
        raise CliError(f"{flag}: {text!r} is not a number", MISUSED) from None


def with_missing(values: Mapping[str, Any], missing: str) -> dict[str, Any]:
    """The primary metric with what a unit without an outcome counts as; nothing where that is not said."""
    if missing and missing not in ("zero", "excluded"):
        raise CliError(f"--missing takes zero or excluded, not {missing!r}", MISUSED)
    return {"primary": {**values.get("primary", {}), "missing": missing}} if missing else {}


def with_caps(values: Mapping[str, Any], caps: Sequence[str]) -> dict[str, Any]:
    """The fields of a plan in which a metric gets its cap, METRIC=VALUE, with that cap."""
    made = {name: values[name] for name in ("primary", "guardrails", "secondary") if values.get(name)}
    changed: set[str] = set()
    for text in caps:
        name, equals, value = text.partition("=")
        if not equals:
            raise CliError(f"--cap takes METRIC=VALUE, such as total_time=60, not {text!r}", MISUSED)
        cap, there = number_from_flag(value, "--cap"), set(changed)
        for field, metrics in made.items():
            several = field != "primary"
            found = [
                m | {"cap": cap} if m.get("name") == name else m for m in (metrics if several else [metrics])
            ]
            if found != (metrics if several else [metrics]):
                there.add(field)
            made[field] = found if several else found[0]
        if not any(m.get("name") == name for m in _all_metrics(made)):
            names = ", ".join(str(m.get("name")) for m in _all_metrics(made)) or "none"
            raise CliError(
                f"--cap {text}: no metric of the plan is called {name!r}; there are: {names}", MISUSED
            )
        changed = there
    return {field: made[field] for field in changed}


def _all_metrics(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for field, metrics in values.items():
        yield from [metrics] if field == "primary" else metrics
