"""Threads for file work, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Two pools: loads that requests wait for never queue behind looks at folders."""

    def __init__(self, threads: int = 4) -> None:
        self._loads = ThreadPoolExecutor(threads, thread_name_prefix="adapters-load")
        self._ordered = ThreadPoolExecutor(1, thread_name_prefix="adapters-look")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` beside other work."""
        return await self._submit(self._loads, work, *args, **kwargs)

    async def in_order(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` after all earlier calls of this method: one at a time."""
        return await self._submit(self._ordered, work, *args, **kwargs)

    @staticmethod
    async def _submit(pool: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))

    async def close(self) -> None:
        """Finish what runs, drop what waits."""
        for pool in (self._loads, self._ordered):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._loads.shutdown)
        await asyncio.to_thread(self._ordered.shutdown)
