"""What llguidance says is wrong, in the words of who wrote the constraint, with the place."""

from __future__ import annotations

import re

from router.engine.constrained.source import place_of
from router.types import Constraint

DEAD_END = "leads to a place where nothing can complete the answer"
_MOST = 300  # characters
_NO_ANSWER = ("NoExtension", "NoExtensionBias")
_TOO_MUCH = (
    "Current row has",
    "LexerTooComplex",
    "ParserTooComplex",
    "Too many",
    "fuel exhausted",
    "lexer precomputation failed",
    "schema too large",
    "too many",
)
_KEYS = re.compile(r'Unimplemented keys: \["([^"]+)"')
_POSITION = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_INSIDE = re.compile(r"^( {4})(.*)\n( +)\^", re.MULTILINE)
_ERROR = re.compile(r"^error: (.*)", re.MULTILINE)


def explained(constraint: Constraint, problem: str) -> str:
    """One line."""
    if problem.startswith(_NO_ANSWER):
        return "no answer can satisfy it"
    if any(words in problem for words in _TOO_MUCH):
        return "is too complex"
    if constraint.kind == "json_schema":
        return _schema(constraint, problem)
    if constraint.kind == "regex":
        return _expression(problem)
    return _grammar(problem)


def broke(problem: str) -> str:
    """Why an answer cannot go on, in one line."""
    if problem.startswith(_NO_ANSWER):
        return DEAD_END
    if any(words in problem for words in _TOO_MUCH):
        return "is too complex to be followed any further"
    return f"cannot be followed any further: {_short(problem)}"


def _schema(constraint: Constraint, problem: str) -> str:
    if found := _KEYS.search(problem):
        key = found[1]
        return f"keyword {key!r} is not supported, at {place_of(constraint.text, key)}"
    if problem.startswith("oneOf"):
        place = place_of(constraint.text, "oneOf")
        return f"alternatives of oneOf that overlap are not supported: say anyOf, at {place}"
    return _short(problem)


def _expression(problem: str) -> str:
    """The error of the expression's parser, and where, if the expression is one line."""
    said, at = _ERROR.search(problem), _INSIDE.search(problem)
    if said is None:
        inner = re.search(r"\(in regex\): (.*)", problem)
        return _short(inner[1] if inner else _POSITION.sub("", problem))
    place = f", at character {len(at[3]) - len(at[1])}" if at else ""
    return _short(said[1]) + place


def _grammar(problem: str) -> str:
    position = _POSITION.match(problem)
    text = _short(_POSITION.sub("", problem))
    return f"line {position[1]}, column {position[2]}: {text}" if position else text


def _short(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _MOST else f"{line[:_MOST]}…"
