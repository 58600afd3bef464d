"""A plan from flags: the common case of two or more versions and one metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.cli.errors import MISUSED, CliError

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


def values_of(
    route: str, arms: Sequence[str], metric: str, guardrails: Sequence[str], hypothesis: str
) -> dict[str, Any]:
    """Flags as the values of a file; the first arm is control, weights are equal unless said."""
    made: dict[str, Any] = {}
    if arms:
        parts = [_arm(arm) for arm in arms]
        made["arms"] = _weighted(parts)
        made["control"] = parts[0]["name"]
    if route:
        made["route"] = route.removeprefix("adapters/")
    if metric:
        name, _, kind = metric.partition(":")
        made["primary"] = _metric(name) | ({"kind": kind} if kind else {})
    if guardrails:
        made["guardrails"] = [_guardrail(text) for text in guardrails]
    if hypothesis:
        made["hypothesis"] = hypothesis
    return made


def _arm(text: str) -> dict[str, Any]:
    name, equals, rest = text.partition("=")
    adapter, _, weight = rest.partition(":")
    if not (equals and name and adapter):
        raise CliError(f"--arm takes NAME=ADAPTER@VERSION[:WEIGHT] or NAME=base, not {text!r}", MISUSED)
    return {"name": name, "adapter": adapter, "weight": _number(weight, "--arm") if weight else None}


def _weighted(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is left by the arms that say their weight is shared equally by the others."""
    said = [arm["weight"] for arm in arms if arm["weight"] is not None]
    silent = len(arms) - len(said)
    share = (1 - sum(said)) / silent if silent else 0.0
    return [arm | {"weight": share if arm["weight"] is None else arm["weight"]} for arm in arms]


def _metric(name: str) -> dict[str, Any]:
    built_in = SHORT_BUILT_IN.get(name)
    if built_in is None:
        return {"name": name, "kind": "proportion"}
    return {"name": name, **built_in, "higher_is_better": False}


def _guardrail(text: str) -> dict[str, Any]:
    name, equals, margin = text.partition("=")
    if not equals:
        raise CliError(f"--guardrail takes METRIC=MARGIN, such as total_time=10%, not {text!r}", MISUSED)
    relative = margin.endswith("%")
    number = _number(margin.removesuffix("%"), "--guardrail")
    return _metric(name) | {"margin": number / 100 if relative else number, "relative": relative}


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CliError(f"{flag}: {text!r} is not a number", MISUSED) from None
