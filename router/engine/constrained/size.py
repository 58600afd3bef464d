"""What a constraint may ask for, counted in its text before it is compiled.

llguidance counts most of its work and stops at limits (`source.limits`). It does not count within one step.
The derivative of expressions that have to match at once multiplies their branches. Alternatives that are
rules fill a row of the parser in time cubic in their number. A rule with parameters may never end. These
bounds keep each such step short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_REPEATS = 1000  # of a counted repetition in an expression
MAX_QUANTIFIERS = 1024  # in one expression
MAX_PARTS = 16_384  # texts and expressions that a terminal is made of, those of its terminals included
MAX_NESTED_TERMINALS = 64
MAX_MEETING = 4  # expressions that one text has to match at once
MAX_BRANCHING = 32_768  # pairs of names in each group of a grammar, of references in each `anyOf`
MOST_MERGED = 16_384  # sets of schemas that hold for one value

_COUNTED = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_QUANTIFIER = re.compile(r"\\.|\[(?:\\.|[^\]\\])*(?:\]|\\?\Z)|(?P<quantifier>[*+?{])", re.DOTALL)
# A comment, a string and an expression hide what looks like a part of a grammar.
_LARK = re.compile(
    r"""//[^\n]* | (?P<text>"(?:\\.|[^"\\\n])*") | (?P<regex>/(?:\\.|[^/\\\n])+/)
    | (?P<special><[^<>\s]*>?) | (?P<params>::|%if\b) | (?P<data>%json\b) | %\w+
    | (?P<name>[A-Za-z_]\w*) | (?P<line>\n) | (?P<sign>\S)""",
    re.VERBOSE,
)
_PROPERTIES, _INNER = ("properties", "patternProperties"), ("items", "additionalProperties")
_HOLDING = frozenset(("pattern", "format", "prefixItems", *_PROPERTIES, *_INNER))
_DATA_KEYS = ("const", "enum", "default", "examples")


def regex_problem(text: str) -> str:
    """Why an expression is not compiled; '' if it is."""
    for match in _COUNTED.finditer(text):
        if any(int(number[:9]) > MAX_REPEATS for number in match.groups() if number):
            return f"repeats more than {MAX_REPEATS} times: {match[0][:20]} at character {match.start()}"
    if _quantifiers(text) > MAX_QUANTIFIERS:
        return f"is too complex: it has more than {MAX_QUANTIFIERS} of *, +, ? and {{"
    return ""


def _pairs(number: int) -> int:
    return number * (number - 1)


def _quantifiers(text: str) -> int:
    return sum(match["quantifier"] is not None for match in _QUANTIFIER.finditer(text))


# -- Grammars.


@dataclass(slots=True)
class _Definition:
    """What the body of a rule or a terminal has; `groups`: names of rules in each group that is open."""

    names: list[str] = field(default_factory=list)
    parts: int = 0
    quantifiers: int = 0
    meeting: int = 0  # signs & and ~
    groups: list[int] = field(default_factory=lambda: [0])
    branching: int = 0

    def add(self, parts: Iterable[tuple[str | None, str]]) -> None:
        """A line of the body: the kind and the text of each part."""
        for kind, text in parts:
            if kind == "name":
                self.names.append(text)
                self.groups[-1] += text.strip("_")[:1].islower()
            elif kind in ("text", "regex"):
                self.parts += 1
                self.quantifiers += _quantifiers(text) if kind == "regex" else 0
            elif text in "([":
                self.groups.append(0)
            elif text in ")]" and len(self.groups) > 1:
                self.branching += _pairs(self.groups.pop())
                self.groups[-1] += 1
            elif text in "*+?{":
                self.quantifiers += 1
            elif text in "&~":
                self.meeting += 1


@dataclass(frozen=True, slots=True)
class _Expanded:
    """A terminal with all terminals that it is made of."""

    parts: int = 0
    quantifiers: int = 0
    meeting: int = 0
    depth: int = 0


def lark_problem(grammar: str) -> str:
    """Why a grammar is not compiled; '' if it is."""
    line, after = 1, 0
    here = _Definition()
    definitions: dict[str, _Definition] = {}
    parts: list[tuple[str | None, str]] = []  # of the line, up to the colon of a definition
    while (match := _LARK.search(grammar, after)) is not None:
        after = match.end()
        kind, text = match.lastgroup, match[0]
        if kind == "special":
            return f"line {line}: {text[:40]} would be a special token, which no answer may have"
        if kind == "params":
            return f"line {line}: rules with parameters and conditions (:: and %if) are not supported"
        if kind == "data":
            schema, after = _data(grammar, after)
            line += grammar.count("\n", match.end(), after)
            if problem := schema_problem(schema):
                return f"line {line}: {problem}"
        elif kind == "regex" and (problem := regex_problem(text)):
            return f"line {line}: {problem}"
        elif kind == "line":
            line += 1
            here.add(parts)
            parts = []
        elif text == ":" and parts:
            here = definitions[parts[0][1]] = _Definition()
            parts = []
        else:
            parts.append((kind, text))
    here.add(parts)
    return _definitions_problem(definitions)


def _data(grammar: str, at: int) -> tuple[Any, int]:
    """The JSON value in a grammar from there on, and its end; {} where there is none."""
    begin = re.compile(r"\s*").match(grammar, at)
    start = at if begin is None else begin.end()
    try:
        return json.JSONDecoder().raw_decode(grammar, start)
    except (ValueError, RecursionError):
        return {}, at


def _definitions_problem(definitions: Mapping[str, _Definition]) -> str:
    branching = sum(one.branching + sum(map(_pairs, one.groups)) for one in definitions.values())
    if branching > MAX_BRANCHING:
        return "is too complex: too many rules are alternatives of one another"
    known: dict[str, _Expanded] = {}
    for name in _inner_first(definitions):
        inner = [known.get(one, _Expanded()) for one in definitions[name].names]
        own = definitions[name]
        meets = [one.meeting for one in inner]
        made = known[name] = _Expanded(
            min(own.parts + sum(one.parts for one in inner), MAX_PARTS + 1),
            min(own.quantifiers + sum(one.quantifiers for one in inner), MAX_QUANTIFIERS + 1),
            own.meeting + sum(meets) if own.meeting else max(meets, default=0),
            1 + max((one.depth for one in inner), default=0),
        )
        if made.meeting >= MAX_MEETING:
            return f"is too complex: {name} has more than {MAX_MEETING} expressions that match at once"
        if made.parts > MAX_PARTS or made.quantifiers > MAX_QUANTIFIERS or made.depth > MAX_NESTED_TERMINALS:
            return f"is too complex: {name} is made of too many terminals"
    return ""


def _inner_first(definitions: Mapping[str, _Definition]) -> Iterator[str]:
    """The names of terminals, each behind those that it is made of; what is in a circle, anyhow."""
    done: set[str] = set()
    for name in definitions:
        left = [(name, False)]
        while left:
            one, opened = left.pop()
            if opened:
                yield one
            elif one in definitions and one not in done and one.isupper():
                done.add(one)
                left.append((one, True))
                left += [(inner, False) for inner in definitions[one].names]


# -- Schemas.


def schema_problem(schema: Any) -> str:
    """Why a schema is not compiled; '' if it is."""
    branching = sum(
        _pairs(sum(map(_refers, value)))
        for key, value in _entries(schema)
        if key in ("anyOf", "oneOf") and isinstance(value, list)
    )
    if branching > MAX_BRANCHING:
        return "is too complex: too many alternatives have references"
    return _merged_problem(schema)


def _entries(schema: Any) -> Iterator[tuple[str, Any]]:
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key, inner
                if key not in _DATA_KEYS:
                    left.append(inner)
        elif isinstance(value, list):
            left += value


def _refers(schema: Any) -> bool:
    return any(key == "$ref" for key, _ in _entries(schema))


def _merged_problem(root: Any) -> str:
    """Schemas that hold for one value are merged, and their expressions have to match at once."""
    left: list[tuple[list[dict[str, Any]], Any]] = [([], [root])]
    seen: set[tuple[frozenset[int], frozenset[int]]] = set()
    lists: set[tuple[frozenset[int], int]] = set()
    while left:
        held, new = left.pop()  # `held`: their own alternatives were followed already
        key = frozenset(map(id, held)), frozenset(map(id, new))
        if key in seen:
            continue
        seen.add(key)
        plain, alternatives = _flat(new, root)
        held = [*held, *(one for one in plain if not _HOLDING.isdisjoint(one))]
        if len(seen) > MOST_MERGED:
            return "is too complex: too many schemas hold for one value"
        if _expressions(held) > MAX_MEETING:
            return f"is too complex: more than {MAX_MEETING} patterns and formats hold for one value"
        here = frozenset(map(id, held))
        for each in alternatives:
            if (here, id(each)) not in lists:
                lists.add((here, id(each)))
                left += ((held, [one]) for one in each)
        left += (([], parts) for parts in _parts(held))
    return ""


def _flat(schemas: Iterable[Any], root: Any) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The schemas that all hold, `allOf` and references followed, and the alternatives of each `anyOf`."""
    plain: list[dict[str, Any]] = []
    alternatives: list[list[Any]] = []
    left, seen = list(schemas), set[int]()
    while left:
        schema = left.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        plain.append(schema)
        if isinstance(schema.get("allOf"), list):
            left += schema["allOf"]
        if "$ref" in schema:
            left.append(_referred(schema["$ref"], root))
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                alternatives.append(schema[key])
    return plain, alternatives


def _referred(reference: Any, root: Any) -> Any:
    """What a reference within the schema names; None where it names nothing."""
    found = root
    for part in str(reference).removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found


def _expressions(schemas: Iterable[dict[str, Any]]) -> int:
    return sum(("pattern" in one) + ("format" in one) for one in schemas)


def _parts(schemas: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The schemas of each property and of the items, from all that hold for the value."""
    named: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for schema in schemas:
        for key in _PROPERTIES:
            inner = schema.get(key)
            for name, one in inner.items() if isinstance(inner, dict) else ():
                named.setdefault((key, name), []).append(one)
        for key in _INNER:
            if isinstance(schema.get(key), dict):
                named.setdefault((key, ""), []).append(schema[key])
        inner = schema.get("prefixItems")
        for at, one in enumerate(inner if isinstance(inner, list) else ()):
            named.setdefault(("prefixItems", str(at)), []).append(one)
    yield from named.values()
