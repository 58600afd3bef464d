"""Bodies of requests: read as bytes after every check, bounded for each method and for all calls together.

A call that is refused is never read, so its sender is held back by the transport. A call that sends headers
and no body holds one of few read slots (`admission.py`), and ends after some seconds. Small bodies are
decoded at once; large ones in a thread, one at a time.

What a body contains is counted before it is decoded. A small body may hold a million empty messages or
objects, and each of them costs memory and time when it is decoded. So the body is read once without building
anything, until it ends or has more than MAX_ELEMENTS elements.
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

log = logging.getLogger(__name__)

MAX_ELEMENTS = 1 << 14
"""Fields, list entries and values of one body. A batch of 1,000 outcomes has about 11,000."""
ELEMENT_BYTES = 256
"""Memory that one decoded element takes beside its text: the entry of a list and the object itself."""
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


def too_complex(field: str) -> InvalidRequest:
    """The error for a body with too many elements."""
    text = f"must have at most {MAX_ELEMENTS} fields, entries and values together"
    return InvalidRequest([FieldViolation(field, text)])


# -- Protobuf: the wire format, https://protobuf.dev/programming-guides/encoding/

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
PACKED = None  # numbers, one behind the other
_WIDTH = {FIXED64: 8, FIXED32: 4}


@cache
def _inside(message: Descriptor) -> Mapping[int, Descriptor | None]:
    """What is in fields of bytes, by their numbers: a message, or PACKED. A text has nothing to count."""
    found: dict[int, Descriptor | None] = {}
    for field in message.fields:
        if field.message_type is not None:
            found[field.number] = field.message_type
        elif field.is_repeated and field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
            found[field.number] = PACKED
    return found


def count_message(descriptor: Descriptor, data: bytes) -> int:
    """An upper bound of the fields of a protobuf message and of all messages in it: each byte of packed
    numbers counts as one.

    Raises InvalidRequest for more than MAX_ELEMENTS, and for bytes that are no message. Groups, which no
    message here has, are none. The parser bounds the nesting.
    """
    elements, parts = 0, [(0, len(data), descriptor)]
    while parts:
        at, end, message = parts.pop()
        inside = _inside(message)
        while at < end:
            tag, at = _varint(data, at, end)
            elements, wire, size = elements + 1, tag & 7, 0
            if wire == VARINT:
                _, at = _varint(data, at, end)
            elif wire == BYTES:
                size, at = _varint(data, at, end)
                if size and (number := tag >> 3) in inside:
                    if (inner := inside[number]) is PACKED:
                        elements += size
                    else:
                        parts.append((at, at + size, inner))
            elif wire in _WIDTH:
                size = _WIDTH[wire]
            else:
                raise _no_message()
            at += size
            if at > end:
                raise _no_message()
            if elements > MAX_ELEMENTS:
                raise too_complex("request")
    return elements


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of at most 32 bits, in up to ten bytes, and where it ends."""
    if at < end and data[at] < 128:  # most are this short
        return data[at], at + 1
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

_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
MAX_TEXTS = 2 * MAX_ELEMENTS  # a value is a string at most, and its key another


def count_json(data: bytes) -> int:
    """An upper bound of the values in JSON: 1, and one more for each comma and bracket outside of strings.

    Raises InvalidRequest for more than MAX_ELEMENTS values. The parser bounds the nesting.
    """
    bare, texts = _TEXT.subn(b"", data, MAX_TEXTS + 1)
    elements = 1 + bare.count(b",") + bare.count(b"[") + bare.count(b"{")
    if elements > MAX_ELEMENTS or texts > MAX_TEXTS:
        raise too_complex("body")
    return elements
