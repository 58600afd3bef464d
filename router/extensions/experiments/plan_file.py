"""A plan as plain values, JSON and TOML, and what is wrong with its fields: all by the model of `Spec`."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from router.errors import MOST_FINDINGS, FieldViolation, InvalidRequest
from router.extensions.experiments.model import (
    BASE,
    Aggregate,
    ArmSpec,
    Kind,
    MetricSpec,
    SegmentSpec,
    Spec,
    Unanswered,
    known_metric,
)
from router.types import AdapterRef

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PARTS: Mapping[str, type] = {
    "arms": ArmSpec,
    "primary": MetricSpec,
    "guardrails": MetricSpec,
    "secondary": MetricSpec,
    "segments": SegmentSpec,
}
"""Fields of a plan that are tables of a file."""
MOST_SHOWN = 40  # characters of a wrong value
FORMS = {
    "missing": "must be set",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "dataclass_type": "must be a table",
}
"""By the type of pydantic's error, where its own text speaks of Python."""


@cache
def model() -> TypeAdapter[Spec]:
    """The model of a plan."""
    return TypeAdapter(Spec)


def plan_of(values: Mapping[str, Any]) -> Spec:
    """A plan from plain values. Raises InvalidRequest naming every wrong field."""
    try:
        return model().validate_python({"hypothesis": "", "route": "", **values})
    except ValidationError as error:
        named = list(islice(_violations(error), MOST_FINDINGS))
        raise InvalidRequest(named, error.error_count() - len(named)) from None


def typed(
    values: Mapping[str, Any], arms: Sequence[tuple[str, str]] = (), split: str = "", metric: str = ""
) -> dict[str, Any]:
    """The values of a file, with what people type replaced: arms as names and versions (or `base`), control
    first; their weights as `90/10`, equal by default; the metric as NAME or KIND:NAME.

    Where the file says no route, it is the adapter of the first arm that has one. Raises InvalidRequest for
    a wrong split.
    """
    made = dict(values)
    if arms:
        adapters = [adapter.partition("@")[0] for _, adapter in arms if adapter not in ("", BASE)]
        made = {"route": next(iter(adapters), BASE), **made, "control": arms[0][0]}
        made["arms"] = [{"name": name, "adapter": ref, "weight": 1 / len(arms)} for name, ref in arms]
    there = made.get("arms", [])
    if split and isinstance(there, list) and all(isinstance(arm, Mapping) for arm in there):
        made["arms"] = [
            {**arm, "weight": weight}
            for arm, weight in zip(there, weights_of(split, len(there)), strict=True)
        ]
    if metric:
        made["primary"] = metric_of(metric)
    return made


def weights_of(split: str, arms: int | None = None, field: str = "split") -> tuple[float, ...]:
    """`90/10` or `0.9/0.1` as shares that sum to 1, of so many arms. Raises InvalidRequest unless they add up
    to 100 or 1."""
    try:
        parts = [float(part) for part in split.split("/")]
    except ValueError:
        parts = []
    total, problem = sum(parts), ""
    if len(parts) < 2 or not all(part > 0 and math.isfinite(part) for part in parts):
        problem = f"must be shares above 0 such as 90/10, control first, not {split[:MOST_SHOWN]!r}"
    elif not any(math.isclose(total, whole, rel_tol=1e-9) for whole in (1.0, 100.0)):
        problem = f"the shares add up to {total:.6g} instead of 100 (or 1)"
    elif arms is not None and len(parts) != arms:
        problem = f"has {len(parts)} weights, and there are {arms} arms: one for each, control first"
    if problem:
        raise InvalidRequest([FieldViolation(field, problem)])
    return tuple(part / total for part in parts)


def metric_of(text: str) -> dict[str, Any]:
    """The metric NAME or KIND:NAME. Built-in metrics have their kind, others are proportions."""
    kind, _, name = text.rpartition(":")
    return {"name": name, "kind": kind or known_metric(name).get("kind", Kind.PROPORTION.value)}


def values_of(spec: Spec) -> dict[str, Any]:
    """A plan as plain values of JSON's types, as a file may have them."""
    values: dict[str, Any] = model().dump_python(spec, mode="json")
    return values


def field_problems(spec: Spec) -> list[FieldViolation]:
    """What is wrong with single fields of a plan."""
    try:
        model().validate_python(spec)
    except ValidationError as error:
        return list(_violations(error))
    return []


def _violations(error: ValidationError) -> Iterator[FieldViolation]:
    for found in error.errors(include_url=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"])
        yield FieldViolation(place.lstrip("."), _described(found))


def _described(error: ErrorDetails) -> str:
    """What is wrong, as `must be ...`, with a wrong number or text itself."""
    if error["type"] == "unexpected_keyword_argument":
        *above, name = map(str, error["loc"])
        names = [field.name for field in fields(PARTS[above[0]] if above else Spec)]
        near = difflib.get_close_matches(name, names, 1)
        return "unknown field; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}")
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in FORMS:
        return FORMS[error["type"]]
    text, value = re.sub(r"^\w+ should ", "must ", error["msg"]), error["input"]
    shown = isinstance(value, str | int | float) and len(str(value)) <= MOST_SHOWN
    return f"{text}, got {value!r}" if shown else text


def plan_toml(spec: Spec) -> str:
    """The file that `lora-router experiments create NAME FILE` reads: only what is not the default."""
    return "\n".join(_lines(spec, {})) + "\n"


def example_plan() -> str:
    """A plan that explains every field; what is left out has the default shown."""
    schema = model().json_schema(mode="serialization")
    described = {name: schema["$defs"][kind.__name__]["properties"] for name, kind in PARTS.items()}
    return f"{HEAD}\n" + "\n".join(_lines(EXAMPLE, {"": schema["properties"], **described})) + "\n"


def _lines(spec: Spec, described: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """`described`: the fields of each table, by JSON schema. A field's description stands where it is first;
    those that no table of a kind sets stand in the last one, with their defaults."""
    values = model().dump_python(spec, mode="json", exclude_defaults=True)
    tables = [(name, one) for name in PARTS for one in _several(values.pop(name, []))]
    kinds = [PARTS[name] for name, _ in tables]
    known = {kind: set[str]() for kind in (Spec, *kinds)}
    yield from _pairs(values, described.get("", {}), known[Spec])
    yield from _defaults(described.get("", {}), known[Spec])
    for place, (name, table) in enumerate(tables):
        title = f"[{name}]" if name == "primary" else f"[[{name}]]"
        yield from ("", _explained(title, _description(name, described.get("", {}), known[Spec])))
        yield from _pairs(table, described.get(name, {}), known[kinds[place]])
        if kinds[place] not in kinds[place + 1 :]:
            yield from _defaults(described.get(name, {}), known[kinds[place]])


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _pairs(values: Mapping[str, Any], described: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for name, value in values.items():
        yield _explained(f"{name} = {_value(value)}", _description(name, described, known))


def _description(name: str, described: Mapping[str, Any], known: set[str]) -> str:
    """Empty from the second time on."""
    text: str = "" if name in known else described.get(name, {}).get("description", "")
    known.add(name)
    return text


def _defaults(described: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for name, about in described.items():
        if name not in known | PARTS.keys() and about.get("default") is not None:
            yield _explained(f"# {name} = {_value(about['default'])}", about.get("description", ""))


def _explained(line: str, description: str) -> str:
    return f"{line:<24} # {description}" if description else line


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # A basic string of TOML is one of JSON, but for the character DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


HEAD = """\
# A plan: `lora-router experiments create medical-v2 medical-v2.toml`. What is left out has the default shown.
# How many units it takes: `lora-router experiments plan`."""
EXAMPLE = Spec(
    "version 1.1.0 helps more users than 1.0.0",
    "medical",
    (
        ArmSpec("old", 0.5, AdapterRef("medical", "1.0.0")),
        ArmSpec("new", 0.5, AdapterRef("medical", "1.1.0")),
    ),
    "old",
    MetricSpec("thumbs_up", Kind.PROPORTION, aggregate=Aggregate.MAX, missing=Unanswered.ZERO),
    guardrails=(
        # Built in: the share of units with an answer slower than 4 s, and that of units with an error.
        MetricSpec("total_time_over_4s", Kind.PROPORTION, higher_is_better=False, margin=0.02),
        MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.02),
    ),
    secondary=(MetricSpec("messages", Kind.MEAN, cap=100.0),),
    segments=(SegmentSpec("country", ("de", "fr")),),
)
