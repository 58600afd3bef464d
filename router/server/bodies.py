"""Bodies of requests: read as bytes after every check, bounded for each method and for all calls together.

A call that is refused is never read, so its sender is held back by the transport. Whoever sends headers and
no body holds one of few turns (`turns.py`), and is let go after some seconds. What a body contains is counted
before it is decoded (`decoding.py`). Small bodies are decoded at once; large ones in a thread, one at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

from router.errors import BodyIncomplete, BodyTooLarge, FieldViolation, InvalidRequest, Overloaded
from router.server.call import whole
from router.server.decoding import decoder_of
from router.server.turns import PART, Turn, Turns

Context = grpc.aio.ServicerContext[Any, Any]
Decode = Callable[[bytes], Any]
SMALL = 64 << 10  # bytes: too few to take from the budget
AT_ONCE = 16 << 10  # bytes: decoded on the event loop, 5 ms at worst
MAX_PLAN_BYTES = 1 << 20  # of an experiment, or of a thousand outcomes
READING = 48 << 20  # bytes of all bodies that are read
MOST_TURNS = 128  # calls whose body is waited for


class Bodies:
    """Reads messages for all calls of a server; lives on one event loop.

    `budget` bytes are in flight at most. A quarter of them, READING at most, are of bodies of up to `most`
    bytes that are read, which the library and this process both have for a moment; a body is waited for
    `seconds` at most.
    """

    def __init__(self, budget: int, seconds: float, most: int) -> None:
        self._budget, self._seconds = Budget(budget), seconds
        turns = min(MOST_TURNS, min(budget // 4, READING) // most)
        self._large = Turns(max(PART, turns), seconds)
        self._small = Turns(MOST_TURNS, seconds)
        self._thread = ThreadPoolExecutor(1, "decode")

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def turn(self, peer: str, most: int) -> AbstractAsyncContextManager[Turn]:
        """The turn to read a message of at most `most` bytes from that connection."""
        return (self._large if most > SMALL else self._small).turn(peer)

    @asynccontextmanager
    async def one(self, context: Context, turn: Turn, most: int, decode: Decode) -> AsyncIterator[Any]:
        """The only message of a call; its memory counts to the end of the block, the turn ends with the read.

        Until it has come `most` bytes are taken from the budget, then its size, then the memory that it takes
        once it is decoded. Raises InvalidRequest, BodyTooLarge, BodyIncomplete (it did not come), Overloaded
        (too much is in flight).
        """
        taken = 0
        try:
            if most > SMALL:
                taken = await self._taken(most)
            data = await self._in_time(context)
            turn.end()
            if data is grpc.aio.EOF:
                raise InvalidRequest([FieldViolation("request", "no message came, or one that is too large")])
            check_size(data, most)
            if taken > len(data):
                self._budget.give(taken - len(data))
                taken = len(data)
            try:
                message, cost = await self._decoded(data, decode)
            finally:
                del data  # an error keeps this frame until the caller has its status
            if taken:
                # What is decoded already does not wait: the budget may be overdrawn, by 4 MiB for a body.
                self._budget.give(taken - cost)
                taken = cost
            yield message
        finally:
            self._budget.give(taken)

    def each(self, context: Context, most: int, decode: Decode) -> Messages:
        """The messages of a stream, whose pauses are nobody's fault."""
        return Messages(context, most, lambda data: self._decoded(data, decode), self._budget)

    async def _taken(self, most: int) -> int:
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                return await self._budget.take(most)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise Overloaded("too many large requests are being read or answered", bound="memory") from None

    async def _in_time(self, context: Context) -> Any:
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                return await whole(context.read())
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
        self,
        context: Context,
        most: int,
        decoded: Callable[[bytes], Awaitable[tuple[Any, int]]],
        budget: Budget,
    ) -> None:
        self._context, self._most, self._decoded, self._budget = context, most, decoded, budget
        self._taken: dict[int, int] = {}  # by the id of a message, which whoever has it holds

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        data = await whole(self._context.read())
        if data is grpc.aio.EOF:
            raise StopAsyncIteration
        check_size(data, self._most)
        taken = await self._budget.take(len(data)) if self._most > SMALL else 0
        try:
            message, cost = await self._decoded(data)
        except BaseException:
            self._budget.give(taken)
            raise
        if self._most > SMALL:
            self._budget.give(taken - cost)  # see Bodies.one
            self._taken[id(message)] = cost
        return message

    def done(self, message: Any) -> None:
        """Nobody needs it any more."""
        self._budget.give(self._taken.pop(id(message), 0))

    async def aclose(self) -> None:
        """Nobody needs any."""
        taken, self._taken = sum(self._taken.values()), {}
        self._budget.give(taken)


def check_size(data: bytes, most: int) -> None:
    """Raise BodyTooLarge for more than `most` bytes."""
    if len(data) > most:
        text = f"a message of this method has at most {most} bytes, this one has {len(data)}"
        raise BodyTooLarge(text, limit=str(most), got=str(len(data)))


def decoded(data: bytes, decode: Decode) -> tuple[Any, int]:
    """The message, and the bytes of memory that it takes. Raises InvalidRequest."""
    return decoder_of(decode)(data)


class Budget:
    """So many bytes, given in the order of asking. Lives on one event loop."""

    def __init__(self, most: int) -> None:
        self._most = self.free = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> int:
        """Wait until `size` bytes, at most all there are, are free, and take them; returns how many."""
        size = min(size, self._most)
        if not self._waiting and size <= self.free:
            self.free -= size
            return size
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            self.give(0 if turn.cancelled() else size)  # its turn may have come just then
            raise
        return size

    def give(self, size: int) -> None:
        """Give back."""
        self.free += size
        while self._waiting:
            needed, turn = self._waiting[0]
            if not turn.done():
                if needed > self.free:
                    return
                self.free -= needed
                turn.set_result(None)
            self._waiting.popleft()
