"""A plan as the file that `lora-router experiments create NAME FILE` reads: only what is not the default."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from router.experiments.model import ArmSpec, MetricSpec, SegmentSpec, Spec, Unanswered

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TIMES = ("window", "grace")
TIME_UNITS = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0))
TABLES = ("arms", "primary", "guardrails", "secondary", "segments")
ALWAYS = ("route", "control", "unit", "planned_units")  # are written though they may be the default


def plan_toml(spec: Spec) -> str:
    """The file."""
    return "\n".join(_lines(spec)) + "\n"


def _lines(spec: Spec) -> Iterator[str]:
    yield from _pairs(spec, leave=(*TABLES, *(() if spec.hypothesis else ("hypothesis",))))
    for arm in spec.arms:
        yield from ("", "[[arms]]")
        yield from _arm(arm)
    yield from ("", "[primary]", *_metric(spec.primary))
    for name in ("guardrails", "secondary"):
        for metric in getattr(spec, name):
            yield from ("", f"[[{name}]]", *_metric(metric))
    for segment in spec.segments:
        yield from ("", "[[segments]]", *_segment(segment))


def _arm(arm: ArmSpec) -> Iterator[str]:
    yield _pair("name", arm.name)
    yield _pair("weight", arm.weight)
    if arm.adapter is not None:
        yield _pair("adapter", str(arm.adapter))


def _metric(metric: MetricSpec) -> Iterator[str]:
    leave = ["window"] if not metric.window else []
    leave += ["missing"] if metric.missing is Unanswered.UNSAID else []
    leave += ["aggregate"] if metric.aggregate is metric.kind.rules.usual else []
    leave += [] if metric.kind.rules.has_denominator else ["per"]
    always = ("name", "kind", "aggregate", *(("missing",) if "missing" not in leave else ()))
    return _pairs(metric, leave, always)


def _segment(segment: SegmentSpec) -> Iterator[str]:
    return _pairs(segment)


def _pairs(
    of: DataclassInstance, leave: tuple[str, ...] | list[str] = (), always: tuple[str, ...] = ALWAYS
) -> Iterator[str]:
    """Fields that are not the default, or are always written."""
    for field in fields(of):
        value = getattr(of, field.name)
        if field.name in leave or (value == _default(field) and field.name not in always):
            continue
        yield _pair(field.name, _time(value) if field.name in TIMES else value)


def _default(field: Field[Any]) -> Any:
    return None if field.default is MISSING else field.default


def _time(seconds: float) -> str:
    """`36h`, `90s`."""
    for unit, length in TIME_UNITS:
        if seconds and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:.12g}s"


def _pair(name: str, value: Any) -> str:
    return f"{name} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    # A basic string of TOML is one of JSON, but for the character DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
