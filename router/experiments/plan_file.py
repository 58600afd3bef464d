"""A plan as plain values, JSON and TOML, and what is wrong with its fields: all by the model of `Spec`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from router.errors import FieldViolation, InvalidRequest
from router.experiments.model import Aggregate, ArmSpec, Kind, MetricSpec, SegmentSpec, Spec, Unanswered
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
SET_BY_THE_SERVER = {"arms": {"__all__": {"withdrawn"}}}
MOST_SHOWN = 40  # characters of a wrong value
FORMS = {"missing": "must be set", "tuple_type": "must be a list", "dataclass_type": "must be a table"}
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
        raise InvalidRequest(list(_violations(error))) from None


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
    values = model().dump_python(spec, mode="json", exclude_defaults=True, exclude=SET_BY_THE_SERVER)
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
