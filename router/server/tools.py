"""The constraint of a call that has to be made: the schemas of a request's functions in one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from router.engine.constrained.objects import close_objects, is_combined
from router.engine.constrained.source import DATA_KEYS, REFERENCES
from router.errors import FieldViolation, Findings, InvalidRequest
from router.types import MAX_CONSTRAINT_BYTES, Constraint, Sampling, Tool, Tools

FIELD = "input.chat.tools"
UNTAUGHT_PENALTY, UNTAUGHT_LENGTH, UNTAUGHT_ITEMS = 0.3, 256, 8
OTHER_BOUNDS = frozenset({"maxLength", "pattern", "format", "enum", "const"})  # of a string
_PLACE = re.compile(r"at \$\.anyOf\[(\d+)\]\.properties\.arguments")


def forced(sampling: Sampling, tools: Tools, found: Findings) -> Sampling:
    """Sampling of an answer that has to be a call: stop strings do not cut it."""
    if not tools.callable:
        return sampling
    constraint = sampling.constraint
    if constraint is not None and constraint.kind != "unconstrained":
        name = "choices.values" if constraint.kind == "choices" else constraint.kind
        found.add(f"sampling.{name}", "cannot be kept where a call is required: leave it out")
        return sampling
    made = Constraint("json_schema", json.dumps(call_schema(tools)))
    if len(made.text) > MAX_CONSTRAINT_BYTES:
        text = f"have schemas of more than {MAX_CONSTRAINT_BYTES} bytes together, and a call is required"
        found.add(f"{FIELD}.functions", text)
    return replace(sampling, constraint=made, stop=())


def call_schema(tools: Tools) -> dict[str, Any]:
    """The schema of the answer: arguments of the one function, else an object with `name` and `arguments`."""
    functions = tools.callable
    if len(functions) == 1:
        return arguments_schema(functions[0])
    return {"anyOf": [_named(tool, number) for number, tool in enumerate(functions)]}


def _named(tool: Tool, number: int) -> dict[str, Any]:
    arguments = _moved(arguments_schema(tool), f"#/anyOf/{number}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of its arguments, whose objects are closed."""
    schema: dict[str, Any] = {"type": "object", **json.loads(tool.parameters or "{}")}
    if not is_combined(schema):
        schema.setdefault("properties", {})
    for name in ("$schema", "$id"):
        schema.pop(name, None)
    close_objects(schema)
    return schema


def _moved(schema: Any, place: str) -> Any:
    """The schema as part of another, where its references begin with `place`."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in REFERENCES and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            made[key] = place + value[1:]
        else:
            made[key] = value if key in DATA_KEYS else _moved(value, place)
    return made


def for_untaught(sampling: Sampling, defaults: Sampling) -> tuple[Sampling, Sampling]:
    """Sampling of a call, and its defaults, for a base that was not taught to call functions.

    Such a base repeats itself without end. So strings and lists that have no bound get one, and a frequency
    penalty ends other repetitions, where nobody sets another.
    """
    if sampling.constraint is not None:
        bounded = json.dumps(_bounded(json.loads(sampling.constraint.text)))
        sampling = replace(sampling, constraint=replace(sampling.constraint, text=bounded))
    if defaults.frequency_penalty is None:
        defaults = replace(defaults, frequency_penalty=UNTAUGHT_PENALTY)
    return sampling, defaults


def _bounded(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_bounded(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value if key in DATA_KEYS else _bounded(value) for key, value in schema.items()}
    if made.get("type") == "string" and OTHER_BOUNDS.isdisjoint(made):
        made["maxLength"] = max(UNTAUGHT_LENGTH, _number(made.get("minLength")))
    if made.get("type") == "array" and "maxItems" not in made:
        made["maxItems"] = max(UNTAUGHT_ITEMS, _number(made.get("minItems")))
    return made


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


@contextmanager
def named_schemas(tools: Tools) -> Iterator[None]:
    """Errors of the constraint of a required call name the function whose schema is wrong."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest([_of_function(violation, tools) for violation in error.violations]) from None


def _of_function(violation: FieldViolation, tools: Tools) -> FieldViolation:
    if violation.field != "sampling.json_schema":
        return violation
    place, functions = _PLACE.search(violation.description), tools.callable
    if len(functions) > 1 and place is None:
        return FieldViolation(f"{FIELD}.functions", f"have schemas of which one {violation.description}")
    tool = functions[int(place[1]) if place is not None else 0]
    description = _PLACE.sub("at $", violation.description)
    return FieldViolation(f"{FIELD}.functions[{tools.functions.index(tool)}].parameters", description)
