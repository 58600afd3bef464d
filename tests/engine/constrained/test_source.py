"""What is wrong with a constraint is said with the place, before anything is compiled."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from router.engine.constrained.source import check_size, grammar_text
from router.errors import Findings, InvalidRequest
from router.types import Constraint


def refusal(kind: Any, text: str = "", choices: tuple[str, ...] = ()) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        grammar_text(Constraint(kind, text, choices))
    violation = caught.value.violations[0]
    return violation.field, violation.description


def nested(depth: int) -> str:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return json.dumps(schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[]", "must be a JSON object"),
        ("true", "must be a JSON object"),
        ("[" * 30000, "is nested too deeply"),
        (nested(80), "is nested deeper than 64 levels, at \\$.items.items"),
        ('{"$ref": "https://example.com/s"}', "refers to something outside, .* at \\$.\\$ref"),
        ('{"properties": {"a": {"$ref": "file:///etc/passwd"}}}', "outside, .* at \\$.properties.a.\\$ref"),
        ('{"anyOf": [{}, {"$dynamicRef": "other.json"}]}', "outside, .* at \\$.anyOf\\[1\\].\\$dynamicRef"),
        ('{"x-guidance": {"lenient": true}}', "is not a keyword of JSON Schema, at \\$.x-guidance"),
        ('{"pattern": "a{5000}"}', "repeats more than 1000 times: .5000. at character 1, at \\$.pattern"),
        (" ", "must not be empty"),
        ('{"title": "' + "x" * 65536 + '"}', "must have at most 65536 bytes"),
    ],
)
def test_schemas(schema: str, said: str) -> None:
    field, description = refusal("json_schema", schema)
    assert field == "sampling.json_schema"
    assert re.search(said, description), description


def test_what_is_data_in_a_schema_refers_to_nothing() -> None:
    text = json.dumps({"enum": [{"$ref": "https://example.com"}], "default": {"x-guidance": 1}})
    assert "example.com" in grammar_text(Constraint("json_schema", text))


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(a{1001})b", "repeats more than 1000 times: {1001} at character 2"),
        ("a{2,99999999999}", "repeats more than 1000 times"),
        ("", "must not be empty"),
    ],
)
def test_expressions(expression: str, said: str) -> None:
    field, description = refusal("regex", expression)
    assert (field, said in description) == ("sampling.regex", True), description


@pytest.mark.parametrize(
    ("choices", "field", "said"),
    [
        ((), "sampling.choices", "must have 1 to 1024 entries, got 0"),
        (("a",) * 1025, "sampling.choices", "must have 1 to 1024 entries, got 1025"),
        (("a", ""), "sampling.choices[1]", "must have 1 to 1024 bytes, got 0"),
        (("a", "b", "a"), "sampling.choices[2]", "is the same as entry 0"),
        (("é" * 513,), "sampling.choices[0]", "must have 1 to 1024 bytes, got 1026"),
        (tuple(f"{i:0>1000}" for i in range(70)), "sampling.choices", "65536 bytes together, got 70000"),
    ],
)
def test_choices(choices: tuple[str, ...], field: str, said: str) -> None:
    found = refusal("choices", choices=choices)
    assert found[0] == field
    assert said in found[1]


@pytest.mark.parametrize(
    ("grammar", "line"),
    [
        ('start: <|im_start|> "a"', 1),
        ('start: "a"\n  | <[5-10]>', 2),
        ('start: "a" // no <b> here\n  | b\nb: /<c>/ <d>', 3),
        ("start: <", 1),
    ],
)
def test_special_tokens(grammar: str, line: int) -> None:
    _, description = refusal("grammar", grammar)
    assert description.startswith(f"line {line}: <")
    assert "special token" in description


@pytest.mark.parametrize("grammar", ['start: "<b>" /<i>/ "</b>"', 'start: "\\"<" // <x>', "start: /\\/</"])
def test_what_only_looks_like_one(grammar: str) -> None:
    assert grammar_text(Constraint("grammar", grammar))


def test_every_bad_choice_is_named_with_the_field_that_is_asked_for() -> None:
    found = Findings()
    check_size(Constraint("choices", choices=("", "x", "x")), "there", found)
    with pytest.raises(InvalidRequest) as caught:
        found.check()
    assert [v.field for v in caught.value.violations] == ["there[0]", "there[2]"]
