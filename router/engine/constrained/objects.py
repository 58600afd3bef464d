"""Closes the objects of a JSON Schema that says nothing of further properties.

By the standard such an object takes any others, and a model may add them until the answer is cut. Most
libraries that make a schema of a class leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from router.engine.constrained.source import REFERENCES
from router.types import Constraint

MAPS = (
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
)  # keywords below which there is a schema for each name
VALUES = ("items", "prefixItems", "additionalProperties")  # below which one describes another value
ALTERNATIVES = ("anyOf", "oneOf")
# Keywords that say what an object may have beside its `properties`.
SAID = ("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames")
Schema = dict[str, Any]


def with_closed_objects(constraint: Constraint) -> Constraint:
    """The constraint whose schema closes its objects. What is no schema stays as it is, to be refused when it
    is compiled."""
    if constraint.kind != "json_schema":
        return constraint
    try:
        schema = json.loads(constraint.text)
        return replace(constraint, text=json.dumps(schema)) if close_objects(schema) else constraint
    except (ValueError, RecursionError):
        return constraint


def close_objects(schema: Any) -> bool:
    """Add `"additionalProperties": false` to each schema in it that has `properties` and does not say what
    else its object may have; returns whether there was any.

    A schema stays open where another one describes the same object (`allOf`, `properties` beside a
    reference or beside `anyOf`), since each would exclude what the other asks for; and where it asks for
    more properties than it lists. All stay open where a reference is no path: what it means is not known.
    """
    try:
        found = list(_schemas(schema))
        shared = _shared(found, schema)
    except LookupError:
        return False
    open_ones = [one for one in found if id(one) not in shared and _is_silent(one)]
    for one in open_ones:
        one["additionalProperties"] = False
    return bool(open_ones)


def is_combined(schema: Schema) -> bool:
    """Whether other schemas say what it describes."""
    return any(key in schema for key in ("allOf", *ALTERNATIVES, *REFERENCES))


def _schemas(whole: Any) -> Iterator[Schema]:
    """The schema and all within it, each once."""
    left, seen = [whole], set[int]()
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict) and id(one) not in seen:
            seen.add(id(one))
            yield one
            for key in MAPS:
                if isinstance(one.get(key), dict):
                    left += one[key].values()
            left += [one[key] for key in VALUES if key in one]
            left += _same_value(one, whole)


def _same_value(one: Schema, whole: Any) -> list[Schema]:
    """The schemas that describe the same value as this one by its keywords. Raises LookupError."""
    lists = [one[key] for key in ("allOf", *ALTERNATIVES) if isinstance(one.get(key), list)]
    found = [part for each in lists for part in each]
    found += [_target(one[key], whole) for key in REFERENCES if isinstance(one.get(key), str)]
    return [part for part in found if isinstance(part, dict)]


def _target(reference: str, whole: Any) -> Any:
    """What a reference leads to. Raises LookupError where it is no path that leads anywhere."""
    first, *steps = unquote(reference).split("/")
    if first != "#":
        raise LookupError(reference)
    for step in steps:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(whole, dict):
            whole = whole[name]
        elif isinstance(whole, list) and name.isdecimal() and len(name) <= 5:
            whole = whole[int(name)]
        else:
            raise LookupError(reference)
    return whole


def _shared(found: list[Schema], whole: Any) -> set[int]:
    """The ids of the schemas whose object others describe, too. Raises LookupError."""
    shared = set[int]()
    left = [one for one in found if _descriptions(one) > 1]
    while left:
        one = left.pop()
        if id(one) not in shared:
            shared.add(id(one))
            left += _same_value(one, whole)
    return shared


def _descriptions(one: Schema) -> int:
    """How many keywords say what its object is: alternatives are one, each part of `allOf` counts."""
    parts = one.get("allOf")
    single = ("properties", *ALTERNATIVES, *REFERENCES)
    return sum(key in one for key in single) + (len(parts) if isinstance(parts, list) else 0)


def _is_silent(one: Schema) -> bool:
    """Whether it lists the properties of an object, asks for no others, and does not say more."""
    listed, asked = one.get("properties"), one.get("required", ())
    if not isinstance(listed, dict) or not isinstance(asked, list | tuple) or any(key in one for key in SAID):
        return False
    least = one.get("minProperties", 0)
    known = all(isinstance(name, str) and name in listed for name in asked)
    return known and isinstance(least, int) and least <= len(listed)
