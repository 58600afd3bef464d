"""Threads for calls that wait for the database, so that neither the event loop nor other threads do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from router.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")
THREADS, WAITING = 4, 64


class StoreThreads:
    """A few threads, and a bounded number of calls that wait for one."""

    def __init__(self, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, "experiments")
        self._inside, self._most, self._lock = 0, threads + waiting, threading.Lock()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)` in a thread; raises Overloaded at once where too many wait. Who gives up waiting does
        not stop the work."""
        with self._lock:
            if self._inside >= self._most:
                raise Overloaded(f"{self._inside} calls of experiments wait for the store already")
            self._inside += 1
        future = self._pool.submit(work, *args, **kwargs)
        future.add_done_callback(self._left)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _left(self, future: Future[T]) -> None:
        with self._lock:
            self._inside -= 1
