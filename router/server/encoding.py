"""Where texts wait for a worker thread: all but the shortest prompts, short ones never behind a queue of long
ones; and texts for embeddings (`embedding.py`).

A prompt whose caller left, or whose deadline passed, is not encoded, or not further than the piece at hand.
Encoding takes about a second for a megabyte.
Short and long texts have threads and queues of their own, so that long ones take one core at most and short
ones find a thread free. In a queue the next is of the tenant of which the fewest characters were read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from router.engine.base import Prompt
from router.engine.fairness import VirtualCounters
from router.errors import Overloaded
from router.server.admission import SHARE_OF_FREE
from router.server.call import check_time

Tokens = list[int]
Check = Callable[[], None]  # raises where nothing more is to be encoded
Encode = Callable[[Prompt, int | None, Check], Tokens]
T = TypeVar("T")

SHORT = 1 << 14  # characters; longer texts go their own way
SHORT_THREADS, LONG_THREADS = 3, 1
# A text lets those pass that come while so many of its characters could be read: the shorter goes first,
# and nobody waits for ever.
PASSING = 1 << 18  # characters a second
MOST_WAITING = 1 << 24  # characters in one queue; what comes then is refused
READ = 1 << 20  # characters that one thread reads in a second, to say when to try again


class Encoding:
    """Encodes prompts in worker threads. Lives on one event loop."""

    def __init__(self, encode: Encode, most_waiting: int = MOST_WAITING) -> None:
        self._encode = encode
        self._short = TextPool(SHORT_THREADS, "encode", most_waiting)
        self._long = TextPool(LONG_THREADS, "encode-long", most_waiting)

    def close(self) -> None:
        """Let the threads go; who waits is cancelled."""
        self._short.close()
        self._long.close()

    async def encode(
        self, prompt: Prompt, most: int | None = None, deadline: float | None = None, tenant: str = ""
    ) -> Tokens:
        """Token ids; cancelling ends it. `deadline` in time.monotonic() seconds.

        Raises what the engine's `encode` raises, Overloaded where too much text waits, DeadlineExceeded if
        the deadline passed before or while it was encoded.
        """
        size = prompt.size
        pool = self._short if size <= SHORT else self._long
        return await pool.run(lambda check: self._encode(prompt, most, check), size, deadline, tenant)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A text that waits for a thread. `turn` is when it goes before shorter ones that come then."""

    turn: float
    size: int
    tenant: str
    ready: asyncio.Future[None]


class _Abandoned(Exception):
    """The caller left; the result is not wanted."""


class TextPool:
    """Some threads that read texts, and the queue before them, in characters at most `most`.

    Where tenants have names, none may hold more than three times the characters that are free.
    """

    def __init__(self, threads: int, name: str, most: int) -> None:
        self._threads, self._most = threads, most
        self._pool = ThreadPoolExecutor(threads, name)
        self._queue: list[_Waiting] = []
        self._counters = VirtualCounters()  # in characters
        self._busy = self._waiting = 0  # threads; characters
        self._held: Counter[str] = Counter()  # of these characters, by tenant

    def close(self) -> None:
        """Let the threads go; what waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for entry in self._queue:
            entry.ready.cancel()

    async def run(self, work: Callable[[Check], T], size: int, deadline: float | None, tenant: str) -> T:
        """What `work` returns, in a thread, of a text of `size` characters; cancelling ends it.

        `work` gets a function to call between pieces, which raises where nothing more is wanted. Raises what
        `work` raises, Overloaded, DeadlineExceeded.
        """
        left = False

        def check() -> None:
            if left:
                raise _Abandoned
            check_time(deadline)

        async with self._turn(size, tenant):
            check_time(deadline)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, work, check)
            finally:
                left = True

    @asynccontextmanager
    async def _turn(self, size: int, tenant: str) -> AsyncIterator[None]:
        """Wait until a thread is for this text. Raises Overloaded; one alone always may wait."""
        held, free = self._held[tenant], self._most - self._waiting
        if (self._waiting and size > free) or (tenant and held and held + size > SHARE_OF_FREE * free):
            later = self._waiting / (READ * self._threads)
            text = "too much text waits to be read"
            raise Overloaded(text, retry_after=max(1.0, later), bound="encoding")
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = _Waiting(time.monotonic() + size / PASSING, size, tenant, ready)
        self._queue.append(entry)
        self._counters.enter(tenant)
        self._waiting += size
        self._held[tenant] += size
        self._start()
        try:
            await ready
            yield
        finally:
            if entry in self._queue:
                self._leave(entry)
            elif not ready.cancelled():
                self._busy -= 1
                self._start()

    def _leave(self, entry: _Waiting) -> None:
        self._queue.remove(entry)
        self._waiting -= entry.size
        self._held[entry.tenant] -= entry.size
        self._counters.leave(entry.tenant)

    def _start(self) -> None:
        """Give free threads to the tenant of which least was read, and of its texts to the first."""
        while self._queue and self._busy < self._threads:
            entry = min(self._queue, key=lambda one: (self._counters.served(one.tenant), one.turn))
            self._leave(entry)
            if not entry.ready.done():  # else its caller has left, and not been told yet
                self._busy += 1
                self._counters.charge(entry.tenant, entry.size)
                entry.ready.set_result(None)
