"""Constraints that were written to do harm, and what their refusal says."""

from __future__ import annotations

import json
from typing import Any

from router.types import Constraint


def _schema(schema: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


def _regex(text: str) -> Constraint:
    return Constraint("regex", text)


def _lark(text: str) -> Constraint:
    return Constraint("grammar", text)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


COMPLEX, NEVER, LONG = "too complex", "no answer can satisfy it", "forces more than"
TREE = {
    "type": "object",
    "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}},
    "required": ["l", "r"],
    "additionalProperties": False,
}

_OVERLAPPING = "|".join(f"[^{chr(97 + i)}]{chr(97 + i * 7 % 26)}{i}" for i in range(20))

REFUSED: dict[str, tuple[Constraint, str]] = {
    "a megabyte": (_schema({"title": "x" * 2**20}), "at most 65536 bytes"),
    "deep schema": (_schema(_nested(100)), "nested deeper"),
    "deep text": (Constraint("json_schema", "[" * 30000), "nested too deeply"),
    "nested repetitions": (_regex("(a{1000}){1000}"), LONG),
    "more nested repetitions": (_regex("((a{100}){100}){100}"), LONG),
    "alternations": (_regex("(a|aa|aaa)*(b|bb)*" * 500), COMPLEX),
    "long expression": (_regex("abcdefghij" * 6000), f"{COMPLEX}|forces more than"),
    "deep expression": (_regex("(" * 20000 + "a" + ")" * 20000), "nested"),
    "look-around": (_regex("(?=a)b"), "look-around.* at character 0"),
    "back-reference": (_regex(r"(a)\1"), "backreferences are not supported, at character 3"),
    "no text": (_regex(r"[^\s\S]"), NEVER),
    "open group": (_regex("a("), "unclosed group, at character 1"),
    "many intersections": (
        _schema({"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]}),
        COMPLEX,
    ),
    "many properties": (
        _schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1900)}}),
        COMPLEX,
    ),
    "product of alternatives": (
        _schema(
            {"allOf": [{"anyOf": [{"const": i}, {"minimum": i}, {"type": "string"}]} for i in range(20)]}
        ),
        COMPLEX,
    ),
    "itself": (_schema({"$ref": "#"}), NEVER),
    "a circle": (
        _schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        NEVER,
    ),
    "endless tree": (_schema(TREE), COMPLEX),
    "another server": (_schema({"$ref": "https://example.com/s.json"}), r"never read.* at \$.\$ref"),
    "a file": (_schema({"items": {"$ref": "file:///etc/passwd"}}), r"never read.* at \$.items.\$ref"),
    "nowhere": (_schema({"$ref": "#/$defs/none"}), "does not exist"),
    "what is not kept to": (
        _schema({"properties": {"a": {"uniqueItems": True, "type": "array"}}}),
        "keyword 'uniqueItems' is not supported, at \\$.properties.a.uniqueItems",
    ),
    "what cannot be": (_schema({"type": "integer", "minimum": 5, "maximum": 1}), "Unsatisfiable"),
    "no type": (_schema({"type": "strng"}), "strng"),
    "a format": (_schema({"format": "never", "type": "string"}), "Unknown format: never"),
    "endless rule": (_lark("start: start"), NEVER),
    "unknown rule": (_lark("start: b\nb: foo"), "line 2, column 4: unknown name"),
    "circular terminal": (_lark("start: A\nA: B\nB: A"), "circular reference"),
    "deep grammar": (_lark("start: " + "(" * 30000 + '"a"' + ")" * 30000), "nested"),
    "doubling": (
        _lark("start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(60)) + '\nr60: "a"'),
        COMPLEX,
    ),
    "intersected automata": (
        _lark("start: A\nA: /(a|b)*a(a|b){200}/ & /(b|a)*b(a|b){200}/ & ~/a*/"),
        COMPLEX,
    ),
    "intersected branches": (
        _lark("start: A\nA: " + " & ".join(f"/(.|x)*({_OVERLAPPING})[{c}z]*/" for c in "abcde")),
        f"{COMPLEX}: A has more than 4",
    ),
    "patterns of properties": (
        _schema({"allOf": [{"properties": {"p": {"pattern": f"{i}.*{i}"}}} for i in range(12)]}),
        f"{COMPLEX}: more than 4 patterns",
    ),
    "parameters without end": (_lark('start: s::0x0\ns::_: s::incr(_) "a" | "b"'), "line 1: .*parameters"),
    "optional letters": (_regex("a?" * 30000), f"{COMPLEX}: .* more than 1024"),
    "chain of terminals": (
        _lark("start: A0\n" + "\n".join(f"A{i}: ~A{i + 1}" for i in range(3000)) + '\nA3000: "a"'),
        COMPLEX,
    ),
    "chain of rules": (
        _lark("start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(4500)) + '\nr4500: "a"'),
        COMPLEX,
    ),
    "rules of one another": (
        _lark(
            "start: s\ns: "
            + " | ".join(f"s t{i}" for i in range(1000))
            + ' | "a"\n'
            + "\n".join(f't{i}: "a" | s "b"' for i in range(1000))
        ),
        f"{COMPLEX}: too many rules",
    ),
    "references to one another": (
        _schema(
            {
                "$defs": {f"d{i}": {"type": "array", "items": {"$ref": "#/$defs/x"}} for i in range(500)}
                | {"x": {"anyOf": [{"$ref": f"#/$defs/d{i}"} for i in range(500)]}},
                "$ref": "#/$defs/x",
            }
        ),
        f"{COMPLEX}: too many alternatives",
    ),
    "a schema in a grammar": (
        _lark('start: %json {"allOf": [' + ", ".join(f'{{"pattern": ".*{i}"}}' for i in range(9)) + "]}"),
        f"line 1: is {COMPLEX}",
    ),
    "special token": (_lark('start: <|im_start|> "a"'), "special token"),
    "schema inside": (_lark('start: %json {"$ref": "http://x/y"}'), "retrieving it failed"),
    "nothing in it": (_lark("// start"), "(?i)empty|no start|unknown"),
    "many choices": (Constraint("choices", choices=tuple(map(str, range(2000)))), "1 to 1024 entries"),
}

ACCEPTED: dict[str, Constraint] = {
    "left recursion": _lark('start: a\na: a "x" | "x"'),
    "ambiguous": _lark('start: s\ns: s s | s s s | "a"'),
    "exponential automaton": _regex("(a|b)*a(a|b){24}"),
    "stars of stars": _regex("(a*)*(a|a)*" * 50 + "b"),
    "letters of the world": _regex(r"\p{L}{500}"),
    "a list": _schema(
        {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "n": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["v", "n"],
            "additionalProperties": False,
        }
    ),
    "shared definitions": _schema(
        {
            "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
            | {"d30": {"type": "string"}},
            "$ref": "#/$defs/d0",
        }
    ),
    "large enumeration": _schema({"enum": [f"v{i}" for i in range(5000)]}),
    "many items": _schema({"type": "array", "items": {"type": "string"}, "minItems": 100000}),
    "most choices": Constraint("choices", choices=tuple(f"{i:0>63}" for i in range(1024))),
    "anything": _schema({}),
}
