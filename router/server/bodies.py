"""Bodies of requests: read as bytes after every check, bounded for each method and for all calls together.

A call that is refused is never read, so its sender is held back by the transport. A call that sends headers
and no body holds one of few read slots (`admission.py`), and ends after some seconds. What a body contains is
counted before it is decoded (`decoding.py`). Small bodies are decoded at once; large ones in a thread, one at
a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from router.errors import BodyIncomplete, BodyTooLarge, FieldViolation, InvalidRequest
from router.server.admission import Memory, ReadSlot
from router.server.call import Call
from router.server.decoding import decoder_of
from router.server.policy import SMALL

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
                return decoded(data, decode)
            return await asyncio.get_running_loop().run_in_executor(self._thread, decoded, data, decode)
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
        text = f"a message of this method has at most {most} bytes, this one has {len(data)}"
        raise BodyTooLarge(text, limit=str(most), got=str(len(data)))


def decoded(data: bytes, decode: Decode) -> tuple[Any, int]:
    """The message, and the bytes of memory that it takes. Raises InvalidRequest."""
    return decoder_of(decode)(data)
