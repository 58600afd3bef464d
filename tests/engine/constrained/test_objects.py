"""Which objects of a schema that is silent on further properties are closed; answers stay possible."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from router.engine.constrained.objects import with_closed_objects
from router.engine.constrained.source import grammar_text
from router.types import Constraint

A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
B: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}
REF_A: dict[str, Any] = {"$ref": "#/$defs/A"}


def closed_places(schema: Any) -> set[str]:
    """Paths of the schemas to which it was added that they take nothing else."""
    made = json.loads(with_closed_objects(Constraint("json_schema", json.dumps(schema))).text)
    found = set[str]()

    def compare(path: str, before: Any, after: Any) -> None:
        if isinstance(before, list):
            for place, pair in enumerate(zip(before, after, strict=True)):
                compare(f"{path}/{place}", *pair)
        elif isinstance(before, dict):
            if after.keys() != before.keys():
                assert after.keys() - before.keys() == {"additionalProperties"}
                assert after["additionalProperties"] is False
                found.add(path)
            for key in before:
                compare(f"{path}/{key}", before[key], after[key])
        else:
            assert before == after

    compare("#", schema, made)
    return found


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (A, {"#"}),
        ({**A, "additionalProperties": True}, set()),
        ({**A, "additionalProperties": {"type": "null"}}, set()),
        ({**A, "patternProperties": {"^x": B}}, {"#/patternProperties/^x"}),
        ({"type": "object"}, set()),
        ({"type": "object", "additionalProperties": A}, {"#/additionalProperties"}),
        ({"type": "object", "properties": {"deep": A}}, {"#", "#/properties/deep"}),
        ({"type": "array", "items": A}, {"#/items"}),
        ({"prefixItems": [A, B]}, {"#/prefixItems/0", "#/prefixItems/1"}),
        ({"anyOf": [A, {"type": "null"}]}, {"#/anyOf/0"}),
        ({"oneOf": [A, B]}, {"#/oneOf/0", "#/oneOf/1"}),
        ({"$ref": "#/$defs/A", "$defs": {"A": A}}, {"#/$defs/A"}),
        ({"properties": {"x": {**REF_A, "title": "X"}}, "$defs": {"A": A}}, {"#", "#/$defs/A"}),
        ({"properties": {"x": {"allOf": [REF_A], "default": None}}, "$defs": {"A": A}}, {"#", "#/$defs/A"}),
        ({"properties": {"again": {"$ref": "#"}}}, {"#"}),
        ({"properties": {"enum": A}}, {"#", "#/properties/enum"}),
        ({"$ref": "#/components/A", "components": {"A": A}}, {"#/components/A"}),
        ({"properties": {"x": {"const": A}}}, {"#"}),
        # What describes one object together stays open.
        ({"allOf": [A, B]}, set()),
        ({"allOf": [A], **B}, set()),
        ({"allOf": [REF_A, B], "$defs": {"A": A}}, set()),
        ({"allOf": [REF_A, B], "$defs": {"A": {"anyOf": [A, {"$ref": "#/$defs/B"}]}, "B": B}}, set()),
        ({**B, **REF_A, "$defs": {"A": A}}, set()),
        ({**B, "anyOf": [A, {"required": ["c"]}]}, set()),
        ({"properties": {"x": {"allOf": [A, B]}, "y": A}}, {"#", "#/properties/y"}),
        # What asks for more than it lists, too.
        ({**A, "required": ["a", "c"]}, set()),
        ({**A, "minProperties": 2}, set()),
        # What a reference means has to be known.
        ({"properties": {"x": {"$ref": "#anchor"}}}, set()),
        ({"properties": {"x": {"$ref": "#/$defs/absent"}}}, set()),
        ({"properties": {"x": {"$ref": "#/$defs/A/0/" + "9" * 5000}}, "$defs": {"A": [[]]}}, set()),
        ({"properties": {"x": {"$ref": "#/title/x"}}, "title": "t"}, set()),
        # What is no schema.
        ([A], {"#/0"}),
        ({"properties": [], "required": 1, "allOf": {}, "anyOf": 3, "$ref": 4}, set()),
        ({**A, "required": [[]]}, set()),
        ({**A, "minProperties": "2"}, set()),
        (True, set()),
    ],
)
def test_which_are_closed(schema: Any, closed: set[str]) -> None:
    assert closed_places(schema) == closed


@pytest.mark.parametrize("text", ["", "{", "[" * 30_000, '{"properties":' * 30_000, "9" * 5_000, '"\ud800"'])
def test_what_is_no_json_stays_as_it_is(text: str) -> None:
    constraint = Constraint("json_schema", text)
    assert with_closed_objects(constraint) == constraint


def test_other_kinds_stay_as_they_are() -> None:
    constraint = Constraint("regex", json.dumps(A))
    assert with_closed_objects(constraint) == constraint


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"allOf": [A, B]}, {"a": None, "b": None}),
        ({"allOf": [REF_A, B], "$defs": {"A": A}}, {"a": None, "b": None}),
        ({**B, **REF_A, "$defs": {"A": A}}, {"a": None, "b": None}),
        ({**A, "required": ["a", "c"]}, {"a": None, "c": 1}),
        ({**A, "minProperties": 2}, {"a": None, "c": 1}),
        ({**B, "anyOf": [A, {"required": ["c"]}]}, {"b": None, "c": 1}),
    ],
)
def test_an_answer_that_the_schema_takes_stays_possible(schema: Any, answer: Any) -> None:
    closed = with_closed_objects(Constraint("json_schema", json.dumps(schema)))
    jsonschema.validate(answer, json.loads(closed.text))
    assert grammar_text(closed)
