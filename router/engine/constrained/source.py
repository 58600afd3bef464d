"""What llguidance reads: a constraint's grammar and the base's vocabulary. And its errors, explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from router.engine.constrained.quote import FUEL, quote_grammar
from router.engine.constrained.size import lark_problem, regex_problem, schema_problem
from router.errors import FailedPrecondition, FieldViolation, Findings, InvalidRequest, install_extra
from router.types import MAX_CHOICE_BYTES, MAX_CHOICES, MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions


MAX_SCHEMA_DEPTH = 64
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
DATA_KEYS = ("const", "enum", "default", "examples")  # what stands below them is no schema
JSON_OPTIONS: JsonCompileOptions = {"whitespace_flexible": False, "lenient": False}
TEMPLATE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def why_not() -> str:
    """Why nothing can be constrained in this environment; empty if it can."""
    if find_spec("llguidance") is not None:
        return ""
    return f"constraints need the package llguidance: {install_extra('constraints')}"


def field_of(constraint: Constraint) -> str:
    """The field of a request that says it."""
    return f"sampling.{constraint.kind}"


def refused(constraint: Constraint, description: str) -> InvalidRequest:
    """The error for a constraint that cannot be used."""
    return InvalidRequest([FieldViolation(field_of(constraint), description)])


def check_size(constraint: Constraint, field: str, found: Findings) -> None:
    """Note what is empty or too long. Cheap."""
    if constraint.kind == "choices":
        _check_choices(constraint.choices, field, found)
    elif constraint.kind == "from_prompt" and not TEMPLATE_NAME.fullmatch(constraint.text):
        found.add(field, "must be the name of a template: a-z, 0-9, '_' and '-', at most 64 of them")
    elif not constraint.text.strip():
        found.add(field, "must not be empty")
    else:
        found.text(field, constraint.text, MAX_CONSTRAINT_BYTES)


def check_form(constraint: Constraint) -> None:
    """Raises InvalidRequest for what is empty or too long. Cheap."""
    found = Findings()
    check_size(constraint, field_of(constraint), found)
    found.check()


def _check_choices(choices: tuple[str, ...], field: str, found: Findings) -> None:
    if not 1 <= len(choices) <= MAX_CHOICES:
        found.add(field, f"must have 1 to {MAX_CHOICES} entries, got {len(choices)}")
        return
    sizes = [len(choice.encode(errors="replace")) for choice in choices]
    for i, size in enumerate(sizes):
        if not 1 <= size <= MAX_CHOICE_BYTES:
            found.add(f"{field}[{i}]", f"must have 1 to {MAX_CHOICE_BYTES} bytes, got {size}")
    if sum(sizes) > MAX_CONSTRAINT_BYTES:
        found.add(field, f"must have at most {MAX_CONSTRAINT_BYTES} bytes together, got {sum(sizes)}")
    first: dict[str, int] = {}
    for i, choice in enumerate(choices):
        if first.setdefault(choice, i) != i:
            found.add(f"{field}[{i}]", f"is the same as entry {first[choice]}")


def grammar_text(constraint: Constraint) -> str:
    """The grammar that llguidance compiles.

    Raises InvalidRequest with what is wrong and where, FailedPrecondition without llguidance.
    """
    check_form(constraint)
    if constraint.kind == "from_prompt":
        raise refused(constraint, "has no prompt to be made of here")
    if problem := why_not():
        raise FailedPrecondition(problem)
    if constraint.kind == "json_schema":
        return _from_schema(constraint)
    from llguidance import LLMatcher

    if constraint.kind == "choices":
        alternatives = " | ".join(json.dumps(choice) for choice in constraint.choices)
        return LLMatcher.grammar_from_lark(f"start: {alternatives}")
    if constraint.kind == "quote":
        try:
            return LLMatcher.grammar_from_lark(quote_grammar(constraint.text))
        except ValueError as error:
            raise refused(constraint, str(error)) from None
    expression = constraint.kind == "regex"
    if problem := regex_problem(constraint.text) if expression else lark_problem(constraint.text):
        raise refused(constraint, problem)
    if expression:
        return LLMatcher.grammar_from_regex(constraint.text)
    return LLMatcher.grammar_from_lark(constraint.text)


def check_grammar(constraint: Constraint) -> None:
    """Compile it without a base's tokens, with which the same may still be too complex.

    Raises what `grammar_text` raises, and InvalidRequest for what does not compile. Blocks.
    """
    grammar = grammar_text(constraint)
    from llguidance import LLMatcher

    if problem := LLMatcher.validate_grammar(grammar, limits=limits(constraint.kind)):
        raise refused(constraint, explained(constraint, problem))


def _from_schema(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    try:
        schema = json.loads(constraint.text)
    except RecursionError:
        raise refused(constraint, "is nested too deeply") from None
    except ValueError as error:
        raise refused(constraint, f"is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise refused(constraint, "must be a JSON object")
    for path, key, value in _entries(schema):
        if problem := _schema_problem(path, key, value):
            raise refused(constraint, f"{problem}, at {path}.{key}")
    if problem := schema_problem(schema):
        raise refused(constraint, problem)
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), None, JSON_OPTIONS)
    except ValueError as error:
        raise refused(constraint, str(error)) from None


def _entries(schema: Any) -> Iterator[tuple[str, str, Any]]:
    """Path ($: the whole) of every object in a schema, data left out, with each of its keys and values."""
    left: list[tuple[str, Any]] = [("$", schema)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                yield path, key, inner
                if key not in DATA_KEYS:
                    left.append((f"{path}.{key}", inner))
        elif isinstance(value, list):
            left += [(f"{path}[{i}]", inner) for i, inner in enumerate(value)]


def _schema_problem(path: str, key: str, value: Any) -> str:
    if path.count(".") + path.count("[") >= MAX_SCHEMA_DEPTH:
        return f"is nested deeper than {MAX_SCHEMA_DEPTH} levels"
    if key in REFERENCES and isinstance(value, str) and not value.startswith("#"):
        return "refers to something outside, which is never read: a reference begins with #"
    if key == "x-guidance":
        return "is not a keyword of JSON Schema"
    if key == "pattern" and isinstance(value, str):
        return regex_problem(value)
    return ""


def place_of(schema_text: str, key: str) -> str:
    """Where a schema has a keyword first; '' if it has none."""
    for path, known, _ in _entries(json.loads(schema_text)):
        if known == key:
            return f"{path}.{known}"
    return ""


BYTES = "byte"  # a vocabulary of single bytes
_SAMPLES = ('Yes, 12 of them: {"a": [1.5, null]}', "naïve café\n\tÜber 你好 🙂", "  def f(x):\n    return x")


@dataclass(frozen=True, slots=True)
class VocabularySpec:
    """What tokens are made from: a tokenizer's JSON, how many logits there are, what ends an answer."""

    tokenizer: str
    width: int
    ends: tuple[int, ...]

    def tokens(self) -> LLTokenizer:
        """Reads it, which takes a third of a second for 50,000 tokens. Raises ValueError."""
        from llguidance import LLTokenizer

        if self.tokenizer == BYTES:
            return LLTokenizer(BYTES)
        return LLTokenizer(self.tokenizer, n_vocab=self.width, eos_token=list(self.ends))


def limits(kind: ConstraintKind = "grammar") -> LLParserLimits:
    """What one grammar may take at most while it is compiled, and of each mask.

    The most that was measured of real ones: 2,000 items of a mask of a grammar, and 4,700 of a schema with
    300 optional properties, 1,040 items of a row, 7,000 symbols, 182,000 units of fuel of a mask.
    """
    from llguidance import LLParserLimits

    schema = kind == "json_schema"
    return LLParserLimits(
        initial_lexer_fuel=FUEL if kind == "quote" else 300_000,
        step_lexer_fuel=200_000,
        step_max_items=16_000 if schema else 5_000,
        max_items_in_row=2_000,
        max_lexer_states=20_000,
        max_grammar_size=10_000 if schema else 16_000,
        verbose_errors=True,  # for `work`
    )


def spec_of(tokenizer: Any, width: int, ends: Iterable[int]) -> VocabularySpec | str:
    """The spec of a transformers tokenizer, or why answers cannot be constrained with it.

    Tokens are bytes to llguidance. That they are the same bytes as in the texts that are served is
    tried on a few samples; a space at the beginning of a text is not one of its own to SentencePiece.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "its tokenizer is written in Python, and only those of the tokenizers library are read"
    known = tuple(sorted(end for end in ends if 0 <= end < width))
    if not known:
        return "no token ends its answers"
    if len(tokenizer) > width:
        return f"its tokenizer has {len(tokenizer)} tokens, its logits only {width}"
    spec = VocabularySpec(_without_padding(backend), width, known)
    try:
        tokens = spec.tokens()
    except ValueError as error:
        return f"its tokenizer is not of a kind whose tokens are bytes: {str(error)[:200]}"
    for text in _SAMPLES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokens.decode_bytes(ids).lstrip(b" ") != text.encode().lstrip(b" ") and _lossless(tokenizer, text):
            return "the texts of its tokens are not the bytes that its vocabulary says"
    return spec


def _without_padding(backend: Any) -> str:
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(backend.to_str())
    copied.no_padding()
    copied.no_truncation()
    text: str = copied.to_str()
    return text


def _lossless(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer gives a text back as it was: not every vocabulary knows every letter."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    again: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return again.lstrip(" ") == text.lstrip(" ")


TOO_COMPLEX = (
    "is too complex to be followed any further: each answer's work is bounded, make it less ambiguous"
)
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
    "too big",
    "too many",
)
_KEYS = re.compile(r'Unimplemented keys: \["([^"]+)"')
_POSITION = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_INSIDE = re.compile(r"^( {4})(.*)\n( +)\^", re.MULTILINE)
_ERROR = re.compile(r"^error: (.*)", re.MULTILINE)


def explained(constraint: Constraint, problem: str) -> str:
    """One line."""
    problem = _said(problem)
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
    problem = _said(problem)
    if problem.startswith(_NO_ANSWER):
        return DEAD_END
    if any(words in problem for words in _TOO_MUCH):
        return TOO_COMPLEX
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
    error, at = _ERROR.search(problem), _INSIDE.search(problem)
    if error is None:
        inner = re.search(r"\(in regex\): (.*)", problem)
        return _short(inner[1] if inner else _POSITION.sub("", problem))
    place = f", at character {len(at[3]) - len(at[1])}" if at else ""
    return _short(error[1]) + place


def _grammar(problem: str) -> str:
    position = _POSITION.match(problem)
    text = _short(_POSITION.sub("", problem))
    return f"line {position[1]}, column {position[2]}: {text}" if position else text


def _said(problem: str) -> str:
    """Without the state and the grammar that the library adds."""
    return problem.partition("\n<state>")[0]


def _short(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _MOST else f"{line[:_MOST]}…"
