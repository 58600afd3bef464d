"""Functions of a request: the constraint of a call that has to be made, and calls in an answer, found while
its text arrives."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

from router.engine.constrained.objects import close_objects, is_combined
from router.engine.constrained.source import DATA_KEYS, REFERENCES
from router.errors import FieldViolation, Findings, InvalidRequest
from router.types import (
    MAX_CONSTRAINT_BYTES,
    MAX_TOOL_CALLS,
    Constraint,
    FinishReason,
    Sampling,
    Tool,
    ToolCall,
    Tools,
)

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


# -- Calls in an answer.

BEGIN, END = "<tool_call>", "</tool_call>"  # around a call in templates of the Hermes kind
ARGUMENTS = ("arguments", "parameters")  # names that models give them
LOOKED_AT = 256  # characters in which a call without marks shows its function
_CALL_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]+)"\s*,\s*"arguments"\s*:\s*(?=\S)')


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call: number `index` of the answer. Its first piece has `id` and `name`."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


Piece = str | CallPiece  # text of the answer, or of a call


class AnswerReader(Protocol):
    """Divides the text of an answer into text and calls."""

    def push(self, text: str) -> Iterable[Piece]:
        """More text; returns what became certain."""
        ...

    def end(self, complete: bool) -> Iterable[Piece]:
        """The rest. `complete`: the model ended the answer itself."""
        ...


def reader_of(tools: Tools) -> AnswerReader | None:
    """The reader of answers to a request with these functions; None where an answer is text."""
    if not tools.callable:
        return None
    return ForcedCall(tools) if tools.choice == "required" else FoundCalls(tools)


def new_id() -> str:
    """The id of a call, unlike any other."""
    return f"call_{secrets.token_hex(12)}"


class ForcedCall:
    """An answer that is a call, written under the schema of `call_schema`: the arguments
    of the only function, or an object with `name` and `arguments`."""

    def __init__(self, tools: Tools) -> None:
        names = [tool.name for tool in tools.callable]
        self._only = names[0] if len(names) == 1 else ""
        self._began = False
        self._held = ""

    def push(self, text: str) -> Iterator[Piece]:
        """Arguments, as they come."""
        self._held += text
        if not self._began:
            name = self._only if self._held else ""
            if not self._only and (head := _CALL_HEAD.match(self._held)):
                name, self._held = head[1], self._held[head.end() :]
            if not name:
                return
            self._began = True
            yield CallPiece(0, "", new_id(), name)
        shown = len(self._held)
        if not self._only:  # the last bracket and white space around it may be the object's own
            shown = len(self._held.rstrip().removesuffix("}").rstrip())
        if shown:
            yield CallPiece(0, self._held[:shown])
        self._held = self._held[shown:]

    def end(self, complete: bool) -> Iterator[Piece]:
        """The rest of arguments that were cut off. A complete answer ends with the bracket of the object that
        the arguments are in."""
        if self._began and self._held and not complete:
            yield CallPiece(0, self._held)


class FoundCalls:
    """An answer that may have calls: JSON objects with `name` and `arguments` (or `parameters`), one or a
    list of them as the whole answer, or each between <tool_call> and </tool_call>.

    What names no function of the request, or has arguments that are no object, stays text. Text that may
    become a call is held back.
    """

    def __init__(self, tools: Tools) -> None:
        self._names = frozenset(tool.name for tool in tools.callable)
        self._most = 1 if tools.single else MAX_TOOL_CALLS
        self._heads = tuple(map("".join, product(("", "["), _openings(self._names))))
        self._held = ""
        self._count = 0
        self._first = True  # nothing but white space came so far

    def push(self, text: str) -> Iterator[Piece]:
        """Text that is certain to be none of a call, and calls that are whole."""
        self._held += text
        while self._held:
            if self._first and self._may_be_bare("".join(self._held[:LOOKED_AT].split())):
                return
            if self._held.lstrip().startswith(BEGIN):
                whole, found, rest = self._held.partition(END)
                if not found:
                    return
                self._held = rest
                yield from self._marked(whole + END)
                continue
            shown = self._certain()
            if not shown:
                return
            self._held = self._held[len(shown) :]
            self._first = False
            if not self._count or shown.strip():
                yield shown

    def end(self, complete: bool) -> Iterator[Piece]:
        """What was held back, as a call if it is one."""
        text, self._held = self._held, ""
        marked = text.lstrip().startswith(BEGIN)
        if complete and (self._first or marked):
            calls = self._parsed(text.strip().removeprefix(BEGIN))
            if calls:
                yield from self._pieces(calls)
                return
        if text and (not self._count or text.strip()):
            yield text

    def _may_be_bare(self, compact: str) -> bool:
        """Whether it may be a call without marks, or begin one."""
        return any(head.startswith(compact) or compact.startswith(head) for head in self._heads)

    def _certain(self) -> str:
        """The beginning of what is held, up to where a mark may begin."""
        place = self._held.find(BEGIN)
        if place >= 0:
            return self._held[:place]
        for length in range(min(len(BEGIN) - 1, len(self._held)), 0, -1):
            if BEGIN.startswith(self._held[-length:]):
                return self._held[:-length]
        return self._held

    def _marked(self, whole: str) -> Iterator[Piece]:
        """A text between marks: the calls, or the text itself."""
        calls = self._parsed(whole.strip().removeprefix(BEGIN).removesuffix(END))
        self._first = False
        yield from self._pieces(calls) if calls else (whole,)

    def _parsed(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        """Names and arguments of the calls that a text is; none if any part of it is no call."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return []
        found = [self._call(one) for one in (value if isinstance(value, list) else [value])]
        return [call for call in found if call is not None] if None not in found else []

    def _call(self, value: Any) -> tuple[str, dict[str, Any]] | None:
        if not isinstance(value, dict) or value.get("type", "function") != "function":
            return None
        name, rest = value.get("name"), value.keys() - {"name", "type", "id"}
        if not isinstance(name, str) or name not in self._names or len(rest) != 1:
            return None
        key = rest.pop()
        arguments = value[key]
        return (name, arguments) if key in ARGUMENTS and isinstance(arguments, dict) else None

    def _pieces(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[Piece]:
        for name, arguments in calls:
            if self._count < self._most:
                yield CallPiece(self._count, "", new_id(), name)
                yield CallPiece(self._count, json.dumps(arguments, ensure_ascii=False))
                self._count += 1


def _openings(names: Iterable[str]) -> Iterator[str]:
    """What a call without marks begins with, white space left out."""
    for name, key, kind in product(names, ARGUMENTS, ("", '"type":"function",')):
        yield f'{{{kind}"name":"{name}","{key}":{{'


class AnswerWithCalls:
    """An answer of a request that offers functions, or none: its text, its calls, and why it ended."""

    def __init__(self, tools: Tools) -> None:
        self._reader = reader_of(tools)
        self._parts: list[list[CallPiece]] = []
        self.reason = FinishReason.ERROR  # until the end

    @property
    def calls(self) -> list[ToolCall]:
        """What came of them so far."""
        return [
            ToolCall(parts[0].id, parts[0].name, "".join(part.arguments for part in parts))
            for parts in self._parts
        ]

    def push(self, text: str) -> Sequence[Piece]:
        """What became certain with more text."""
        if self._reader is None:
            return (text,) if text else ()
        return self._noted(self._reader.push(text))

    def end(self, reason: FinishReason) -> Sequence[Piece]:
        """The rest, after which `reason` is that of the answer: a cut answer stays one."""
        complete = reason is FinishReason.STOP
        pieces = self._noted(self._reader.end(complete)) if self._reader is not None else ()
        self.reason = FinishReason.TOOL_CALLS if complete and self._parts else reason
        return pieces

    def _noted(self, pieces: Iterable[Piece]) -> Sequence[Piece]:
        found = tuple(pieces)
        for piece in found:
            if isinstance(piece, CallPiece):
                if piece.index == len(self._parts):
                    self._parts.append([])
                self._parts[piece.index].append(piece)
        return found
