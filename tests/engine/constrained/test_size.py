"""What is too complex is seen in a text before it is compiled, and what people write is not."""

from __future__ import annotations

from typing import Any

import pytest

from router.engine.constrained.size import lark_problem, regex_problem, schema_problem
from tests.engine.constrained.hostile import REFUSED

OBJECT = {"type": "object", "properties": {"n": {"type": "string", "pattern": "a", "maxLength": 9}}}


def patterns(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": text} for text in texts]


@pytest.mark.parametrize(
    "name",
    [
        "intersected branches",
        "parameters without end",
        "chain of terminals",
        "rules of one another",
        "a schema in a grammar",
        "special token",
    ],
)
def test_grammars_that_are_refused(name: str) -> None:
    assert lark_problem(REFUSED[name][0].text)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: (NAME " "?)+\nNAME: /[a-z]{1,12}/ & ~KEY\nKEY: "if" | "else"',
        "start: a | b\na: NAME\nb: NAME\nNAME: /x/ & /y/ & /z/ & /w/",
        'start: "a::b %if" /c::d/ // e::f',
        "start: " + " | ".join(f'"{i}"' for i in range(5000)),
        "start: "
        + " | ".join(f"r{i}" for i in range(150))
        + "\n"
        + "\n".join(f'r{i}: "{i}"' for i in range(150)),
        'start: %json {\n"anyOf": [{"pattern": "a"}, {"pattern": "b"}]}\nA[capture="x", lazy]: "b"',
        "start: " + "(" * 3000 + '"a"' + ")" * 3000,
    ],
)
def test_grammars_that_are_not(grammar: str) -> None:
    assert lark_problem(grammar) == ""


def test_a_definition_of_several_lines_is_one() -> None:
    grammar = "start: A\nA: /a/\n  & /b/\n  & /c/\n  & /d/\n  & /e/"
    assert lark_problem(grammar).startswith("is too complex: A has more than 4")


def test_a_terminal_counts_with_those_that_it_is_made_of() -> None:
    doubled = "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(11)) + '\nA11: "a"?'
    assert "A0 is made of too many" in lark_problem(f"start: A0\n{doubled}")


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": patterns("a", "b", "c", "d", "e")},
        {"allOf": [{"properties": {"p": one}} for one in patterns("a", "b", "c", "d", "e")]},
        {
            "$defs": {"x": {"allOf": patterns("a", "b", "c")}},
            "$ref": "#/$defs/x",
            "allOf": patterns("d", "e"),
        },
        {"allOf": [*patterns("a", "b", "c", "d"), {"anyOf": patterns("e", "f")}]},
        {"allOf": [{"items": {"format": "date", **one}} for one in patterns("a", "b", "c")]},
    ],
)
def test_many_expressions_of_one_value_are_refused(schema: dict[str, Any]) -> None:
    assert "more than 4 patterns and formats" in schema_problem(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": patterns(*"abcdefgh")},
        {"allOf": [OBJECT] * 20},
        {"type": "object", "properties": dict(zip("abcdefgh", patterns(*"abcdefgh"), strict=True))},
        {"type": "object", "properties": {f"p{i}": {"enum": ["x"]} for i in range(3000)}},
        {"allOf": patterns("a", "b", "c", "d")},
        {
            "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(900)},
            "$ref": "#/$defs/d0",
        },
        {"anyOf": [{"properties": {"n": {"const": i}, "a": {"$ref": "#/x"}}} for i in range(128)], "x": {}},
        {"$ref": "#"},
    ],
)
def test_other_schemas_are_not(schema: dict[str, Any]) -> None:
    assert schema_problem(schema) == ""


def test_quantifiers_are_counted_where_they_are_some() -> None:
    assert regex_problem(r"[*+?{]\*\+" * 2000) == ""
    assert "more than 1024" in regex_problem("a+" * 1025)
