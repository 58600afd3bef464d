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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import chain, count
from typing import Any, TypeVar

from router.engine.base import Prompt
from router.engine.fairness import VirtualCounters
from router.errors import DeadlineExceeded, Overloaded
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


@dataclass(slots=True, order=True)
class _Waiting:
    """One text in the queue of its tenant, the first of which is the least; then the one being read."""

    turn: float
    number: int
    work: Callable[[Check], Any] | None = field(compare=False)  # None: it left, or its turn came
    size: int = field(compare=False)
    tenant: str = field(compare=False)
    deadline: float | None = field(compare=False)
    done: asyncio.Future[Any] = field(compare=False)

    def check(self) -> None:
        """For the encoding thread. Raises DeadlineExceeded, or _Abandoned if the caller left."""
        if self.done.done():
            raise _Abandoned
        check_time(self.deadline)


class _Abandoned(Exception):
    """The caller left; the result is not wanted."""


class TextPool:
    """Some threads that read texts, and the queues before them, in characters at most `most`.

    Where tenants have names, none may hold more than three times the characters that are free.
    """

    def __init__(self, threads: int, name: str, most: int) -> None:
        self._threads, self._most = threads, most
        self._pool = ThreadPoolExecutor(threads, name)
        self._queues: dict[str, list[_Waiting]] = {}  # none is empty
        self._counters = VirtualCounters()  # in characters
        self._numbers = count()
        self._busy = self._waiting = 0  # threads; characters
        self._held: Counter[str] = Counter()  # of these characters, by tenant

    def close(self) -> None:
        """Let the threads go; what waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for entry in chain.from_iterable(self._queues.values()):
            entry.done.cancel()
        self._queues.clear()

    async def run(self, work: Callable[[Check], T], size: int, deadline: float | None, tenant: str) -> T:
        """What `work` returns, in a thread, of a text of `size` characters; cancelling ends it.

        `work` gets a function to call between pieces, which raises where nothing more is wanted. Raises what
        `work` raises, Overloaded, DeadlineExceeded.
        """
        self._check_room(size, tenant)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        turn = time.monotonic() + size / PASSING
        entry = _Waiting(turn, next(self._numbers), work, size, tenant, deadline, done)
        self._counters.enter(tenant)
        heappush(self._queues.setdefault(tenant, []), entry)
        self._waiting += size
        self._held[tenant] += size
        self._start()
        try:
            return await done
        finally:
            self._take(entry)

    def _take(self, entry: _Waiting) -> Callable[[Check], Any] | None:
        """Its work, if nobody has taken it yet."""
        work, entry.work = entry.work, None
        if work is not None:
            self._waiting -= entry.size
            self._held[entry.tenant] -= entry.size
            self._counters.leave(entry.tenant)
        return work

    def _check_room(self, size: int, tenant: str) -> None:
        """Raises Overloaded; one alone always may wait."""
        held, free = self._held[tenant], self._most - self._waiting
        if (self._waiting and size > free) or (tenant and held and held + size > SHARE_OF_FREE * free):
            later = self._waiting / (READ * self._threads)
            text = "too much text waits to be read"
            raise Overloaded(text, retry_after=max(1.0, later), bound="encoding")

    def _next(self) -> _Waiting:
        """The first of the tenant of which least was read."""
        tenant = min(self._queues, key=lambda t: (self._counters.served(t), self._queues[t][0]))
        entry = heappop(self._queues[tenant])
        if not self._queues[tenant]:
            del self._queues[tenant]
        return entry

    def _start(self) -> None:
        """Begin as many as there are threads for."""
        while self._queues and self._busy < self._threads:
            entry = self._next()
            work = self._take(entry)
            if work is None:
                continue
            try:
                entry.check()
            except DeadlineExceeded as error:
                entry.done.set_exception(error)
                continue
            self._busy += 1
            self._counters.charge(entry.tenant, entry.size)
            running = asyncio.get_running_loop().run_in_executor(self._pool, work, entry.check)
            running.add_done_callback(partial(self._finished, entry.done))

    def _finished(self, done: asyncio.Future[Any], running: asyncio.Future[Any]) -> None:
        self._busy -= 1
        error = None if running.cancelled() else running.exception()
        if not done.done():
            if running.cancelled():
                done.cancel()
            elif error is not None:
                done.set_exception(error)
            else:
                done.set_result(running.result())
        self._start()
