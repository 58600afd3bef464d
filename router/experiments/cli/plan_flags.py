"""Flags that change the metrics of a plan: caps, and what a unit without an outcome counts as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.cli.command import MISUSED, CliError
from router.experiments.cli.metric_flags import number_from_flag


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
