"""Bodies of requests: read as bytes after every check, bounded for each method and for all calls together.

A call that is refused is never read, so its sender is held back by the transport. A call that sends headers
and no body holds one of few read slots (`admission.py`), and ends after some seconds. Small bodies are
decoded at once; large ones in a thread, one at a time.

What a body contains is counted before it is decoded. A small body may hold a million empty messages or
objects, and each of them costs memory and time when it is decoded. So the body is read once without building
anything: elements are counted, the nesting is measured, and a list with more entries than the API permits is
refused at the first entry too many. The cost of the count is bounded by MAX_ELEMENTS and by the length of the
body.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from router.errors import BodyIncomplete, BodyTooLarge, FieldViolation, InvalidRequest
from router.server.admission import Memory, ReadSlot
from router.server.call import Call
from router.server.policy import SMALL
from router.types import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_MIXTURE_PARTS,
    MAX_OUTCOMES,
    MAX_STOPS,
    MAX_TOOL_CALLS,
    MAX_TOOLS,
)

log = logging.getLogger(__name__)

MAX_ELEMENTS = 1 << 14
"""Fields, list entries and values of one body. A batch of 1,000 outcomes has about 11,000."""
MAX_MESSAGE_DEPTH, MAX_JSON_DEPTH = 100, 200
"""Messages and groups, or arrays and objects, inside each other: what the parsers take."""
ELEMENT_BYTES = 256
"""Memory that one decoded element takes beside its text: the entry of a list and the object itself."""
DEFAULT_ENTRIES = 256
"""Entries of a repeated field or map that MAX_ENTRIES does not name."""
MAX_ENTRIES: Mapping[str, int] = {
    "router.v1.Chat.messages": MAX_MESSAGES,
    "router.v1.ChatMessage.tool_calls": MAX_TOOL_CALLS,
    "router.v1.Tools.functions": MAX_TOOLS,
    "router.v1.Sampling.stop": MAX_STOPS,
    "router.v1.Sampling.Choices.values": MAX_CHOICES,
    "router.v1.Sampling.logit_bias": MAX_BIASES,
    "router.v1.Routing.mixture": MAX_MIXTURE_PARTS,
    "router.v1.GenerateRequest.labels": MAX_LABELS,
    "router.v1.StreamGenerateRequest.labels": MAX_LABELS,
    "router.v1.RecordOutcomesRequest.outcomes": MAX_OUTCOMES,
    "router.v1.Experiment.phases": 1024,  # set by the server; clients send it back in updates
}
"""Entries of each repeated field and map of a request, by the field's full name."""
NO_MESSAGE = "the bytes are not a message of this method"

Decode = Callable[[bytes], Any]
AT_ONCE = 16 << 10  # bytes: decoded on the event loop, 5 ms at worst


class Bodies:
    """Reads messages for all calls of a server; lives on one event loop.

    Large bodies take their bytes from `memory`; a body is awaited for `seconds` at most.
    """

    def __init__(self, memory: Memory, seconds: float) -> None:
        self._memory, self._seconds = memory, seconds
        self._thread = ThreadPoolExecutor(1, "decode")

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def one(self, call: Call, slot: ReadSlot, decode: Decode) -> AsyncIterator[Any]:
        """The only message of a call; its memory counts to the end of the block, the slot ends with the read.

        Until it has come `call.most` bytes are taken from the memory, then its size, then what it takes once
        it is decoded. Raises InvalidRequest, BodyTooLarge, BodyIncomplete (it did not come), Overloaded (too
        much is in flight).
        """
        taken = 0
        try:
            if call.most > SMALL:
                taken = await self._memory.take_within(call.most, self._seconds)
            data = await self._in_time(call)
            slot.end()
            if data is None:
                raise InvalidRequest([FieldViolation("request", "no message came, or one that is too large")])
            check_size(data, call.most)
            if taken > len(data):
                self._memory.give(taken - len(data))
                taken = len(data)
            try:
                message, cost = await self._decoded(data, decode)
            finally:
                del data  # an error keeps this frame until the caller has its status
            if taken:
                # What is decoded already does not wait: the memory may be overdrawn, by 4 MiB for a body.
                self._memory.give(taken - cost)
                taken = cost
            yield message
        finally:
            self._memory.give(taken)

    def each(self, call: Call, decode: Decode) -> Messages:
        """The messages of a stream, whose pauses are nobody's fault."""
        return Messages(call, lambda data: self._decoded(data, decode), self._memory)

    async def _in_time(self, call: Call) -> Any:
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                return await call.read()
        except TimeoutError:
            if not timeout.expired():
                raise
            text = f"the body of the request did not come within {self._seconds:g} s"
            raise BodyIncomplete(text, bound="no_body") from None

    async def _decoded(self, data: bytes, decode: Decode) -> tuple[Any, int]:
        try:
            if len(data) <= AT_ONCE:
                return decoder_of(decode)(data)
            return await asyncio.get_running_loop().run_in_executor(self._thread, decoder_of(decode), data)
        except InvalidRequest as error:
            error.with_traceback(None)  # nor the frames of the decoder, which have the body
            raise
        finally:
            del data


class Messages:
    """The messages of a stream, one after the other. The memory of those that may be large counts from when
    one is there until it is `done`, or the stream is closed.

    Raises InvalidRequest, BodyTooLarge. While too many bytes are in flight, it waits.
    """

    def __init__(
        self, call: Call, decoded: Callable[[bytes], Awaitable[tuple[Any, int]]], memory: Memory
    ) -> None:
        self._call, self._decoded, self._memory = call, decoded, memory
        self._taken: dict[int, int] = {}  # by the id of a message, which its owner holds

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        data: Any = await self._call.read()
        if data is None:
            raise StopAsyncIteration
        check_size(data, self._call.most)
        taken = await self._memory.take(len(data)) if self._call.most > SMALL else 0
        try:
            message, cost = await self._decoded(data)
        except BaseException:
            self._memory.give(taken)
            raise
        if self._call.most > SMALL:
            self._memory.give(taken - cost)  # see Bodies.one
            self._taken[id(message)] = cost
        return message

    def done(self, message: Any) -> None:
        """Nobody needs it any more."""
        self._memory.give(self._taken.pop(id(message), 0))

    async def aclose(self) -> None:
        """Nobody needs any."""
        taken, self._taken = sum(self._taken.values()), {}
        self._memory.give(taken)


def check_size(data: bytes, most: int) -> None:
    """Raise BodyTooLarge for more than `most` bytes."""
    if len(data) > most:
        raise too_large(str(len(data)), most)


def too_large(got: str, most: int) -> BodyTooLarge:
    """The error for a body of `got` bytes where `most` are allowed."""
    return BodyTooLarge(f"the body has {got} bytes, at most {most} are allowed", limit=str(most), got=got)


# -- What is counted before it is decoded.


@dataclass(frozen=True)
class Decoder:
    """Makes a request of a body that `count` has found to be small enough.

    `count` returns the number of elements and raises InvalidRequest for too many. `make` may raise anything.
    """

    count: Callable[[bytes], int]
    make: Callable[[bytes], Any]

    def __call__(self, data: bytes) -> tuple[Any, int]:
        """The request, and the bytes of memory that it takes.

        Raises InvalidRequest: with a fixed text for bytes that are no message.
        """
        try:
            elements = self.count(data)
            return self.make(data), len(data) + elements * ELEMENT_BYTES
        except InvalidRequest:
            raise  # the counter and some decoders name the fault
        except Exception as error:  # whatever the parser raises, the fault is the caller's
            log.debug("undecodable request: %s", type(error).__name__)
            raise InvalidRequest([FieldViolation("request", NO_MESSAGE)]) from None


@cache
def decoder_of(decode: Callable[[bytes], Any]) -> Decoder:
    """The decoder of a handler: its own, or that of a protobuf message for `Message.FromString`.

    Raises TypeError for any other function, whose body nothing would count.
    """
    if isinstance(decode, Decoder):
        return decode
    kind = getattr(decode, "__self__", None)
    if not (isinstance(kind, type) and issubclass(kind, Message)):
        raise TypeError(f"{decode!r} needs a Decoder that counts the body first")
    return Decoder(partial(count_message, kind.DESCRIPTOR), decode)  # type: ignore[arg-type]


def json_decoder(make: Callable[[bytes], Any]) -> Decoder:
    """The decoder of a JSON body."""
    return Decoder(count_json, make)


def too_many(field: str, most: int) -> InvalidRequest:
    """The error for a list with more than `most` entries."""
    return InvalidRequest([FieldViolation(field, f"must have at most {most} entries")])


def too_complex(field: str) -> InvalidRequest:
    """The error for a body with too many elements."""
    text = f"must have at most {MAX_ELEMENTS} fields, entries and values together"
    return InvalidRequest([FieldViolation(field, text)])


# -- Protobuf: the wire format, https://protobuf.dev/programming-guides/encoding/

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
_WIRE = {
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_FIXED64: FIXED64,
    FieldDescriptor.TYPE_SFIXED64: FIXED64,
    FieldDescriptor.TYPE_FLOAT: FIXED32,
    FieldDescriptor.TYPE_FIXED32: FIXED32,
    FieldDescriptor.TYPE_SFIXED32: FIXED32,
    FieldDescriptor.TYPE_STRING: BYTES,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_MESSAGE: BYTES,
}
_WIDTH = {FIXED64: 8, FIXED32: 4, GROUP: 0}


@dataclass(frozen=True, slots=True)
class _Field:
    """How a field is counted. `most`: entries of a repeated field, 0 for a single one. `packed`: the least
    bytes of an entry where they stand together, 0 where they do not."""

    name: str
    most: int
    message: Descriptor | None
    packed: int = 0


@cache
def _fields(message: Descriptor) -> dict[int, _Field]:
    """The fields that need more than being skipped, by their tag."""
    found: dict[int, _Field] = {}
    for field in message.fields:
        most = MAX_ENTRIES.get(field.full_name, DEFAULT_ENTRIES) if field.is_repeated else 0
        if field.type == FieldDescriptor.TYPE_GROUP:
            raise TypeError(f"{field.full_name} is encoded as a group, which nothing here counts")
        wire = _WIRE.get(field.type, VARINT)
        if most or field.message_type is not None:
            found[field.number << 3 | wire] = _Field(field.name, most, field.message_type)
        if most and wire in (VARINT, FIXED32, FIXED64):
            found[field.number << 3 | BYTES] = _Field(field.name, most, None, _WIDTH.get(wire, 1))
    return found


def count_message(descriptor: Descriptor, data: bytes) -> int:
    """Fields of a protobuf message and of all messages in it, each packed entry counted.

    Raises InvalidRequest for more than MAX_ELEMENTS, for more entries of a field than it may have, for more
    than MAX_MESSAGE_DEPTH levels, and for bytes that are no message.
    """
    walk = _Walk(data)
    walk.fields(0, len(data), _fields(descriptor), "", {}, 0)
    return walk.elements


@dataclass(slots=True)
class _Walk:
    """One pass over the bytes of a message."""

    data: bytes
    elements: int = 0

    def fields(
        self, at: int, end: int, known: Mapping[int, _Field], path: str, entries: dict[str, int], depth: int
    ) -> int:
        """Count the fields from `at` on, up to `end` or the end of a group; returns where that is.

        `entries` counts entries of repeated fields by path. A single message that comes twice is merged by
        parsers, so its parts share one dictionary.
        """
        if depth > MAX_MESSAGE_DEPTH:
            raise _no_message()
        data = self.data
        while at < end:
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = _varint(data, at - 1, end)
            self.elements += 1
            if self.elements > MAX_ELEMENTS:
                raise too_complex("request")
            if tag & 7 == END_GROUP:
                return at
            at, stop = _content(data, at, end, tag & 7)
            field = known.get(tag)
            if field is not None:
                self.field(field, at, stop, path, entries, depth)
            elif tag & 7 == GROUP:
                stop = self.fields(at, end, {}, path, {}, depth + 1)
            at = stop
        return at

    def field(
        self, field: _Field, at: int, stop: int, path: str, entries: dict[str, int], depth: int
    ) -> None:
        """Count what is in one field, whose content is from `at` to `stop`."""
        where = f"{path}.{field.name}" if path else field.name
        if field.most:
            more = -(-(stop - at) // field.packed) if field.packed else 1
            entries[where] = count = entries.get(where, 0) + more
            if count > field.most:
                raise too_many(where, field.most)
            self.elements += max(0, more - 1)
            entries = {}
        if field.message is not None:
            self.fields(at, stop, _fields(field.message), where, entries, depth + 1)


def _content(data: bytes, at: int, end: int, wire: int) -> tuple[int, int]:
    """Where the content of a field begins and ends; of a group it begins and ends behind the tag."""
    if wire == BYTES:
        size, at = _varint(data, at, end)
        stop = at + size
    elif wire == VARINT:
        stop = _varint(data, at, end)[1]
    else:
        if wire not in _WIDTH:
            raise _no_message()
        stop = at + _WIDTH[wire]
    if stop > end:
        raise _no_message()
    return at, stop


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of at most 32 bits, in up to ten bytes, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFF, at
        shift += 7
    raise _no_message()


def _no_message() -> InvalidRequest:
    return InvalidRequest([FieldViolation("request", NO_MESSAGE)])


# -- JSON

QUOTE = ord('"')
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_WHOLE = re.compile(rb'(?:[^"]++|' + _TEXT + rb")*+", re.DOTALL)
_TEXTS = re.compile(_TEXT, re.DOTALL)
_REST_OF_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
PIECE = 1 << 16
"""Bytes that are looked at in one step, which holds the interpreter's lock: for a millisecond at most."""


def count_json(data: bytes) -> int:
    """An upper bound of the values in JSON: 1, and one more for each comma and bracket outside of strings.

    The count ends early where the bytes are no JSON: the parser gets no further. Raises InvalidRequest for
    more than MAX_ELEMENTS values or more than MAX_JSON_DEPTH levels.
    """
    at, end, elements, depth, texts = 0, len(data), 1, 0, 0
    while at < end and depth >= 0 and texts <= 2 * elements:  # a value is a string at most, and its key one
        found = _WHOLE.match(data, at, at + PIECE)
        stop = found.end() if found is not None else at
        bare, count = _TEXTS.subn(b"", data[at:stop])
        opened = bare.count(b"[") + bare.count(b"{")
        elements += opened + bare.count(b",")
        if elements > MAX_ELEMENTS:
            raise too_complex("body")
        depth = _depth(bare, depth, opened)
        texts += count
        at = stop
        if at < end and data[at] == QUOTE:  # of a string that ends in another piece, or not at all
            at = _after_text(data, at + 1, end)
            texts += 1
    return elements


def _depth(bare: bytes, depth: int, opened: int) -> int:
    """How deep it is after that piece, which opens so many; negative where more was closed than opened."""
    if depth + opened <= MAX_JSON_DEPTH:
        return depth + opened - bare.count(b"]") - bare.count(b"}")
    for mark in bare.translate(None, _NO_BRACKETS):
        depth += 1 if mark in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            text = f"must not be nested more than {MAX_JSON_DEPTH} levels deep"
            raise InvalidRequest([FieldViolation("body", text)])
        if depth < 0:
            break
    return depth


def _after_text(data: bytes, at: int, end: int) -> int:
    """Where a string ends whose first character is at `at`."""
    while at < end:
        begin, found = at, _REST_OF_TEXT.match(data, at, at + PIECE)
        at = found.end() if found is not None else at
        if at < end and data[at] == QUOTE:
            return at + 1
        if at == begin:  # a backslash is the last byte
            return end
    return end
