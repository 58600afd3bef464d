"""The loop that keeps looking at adapter folders: when told of a change, and regularly."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from router.registry.disk.reconcile import Reconciler
from router.registry.disk.watcher import Watcher
from router.registry.options import RegistryOptions

log = logging.getLogger(__name__)

LEAST_GAP = 0.1  # seconds between two looks, however often the kernel reports something
SHARE = 0.05  # of the time that may go into looks when nothing happens


class Watching:
    """Runs looks one after another in a task."""

    def __init__(
        self, dirs: Sequence[Path], reconciler: Reconciler, plan: Callable[[], None], options: RegistryOptions
    ) -> None:
        self._reconciler, self._plan, self._options = reconciler, plan, options
        self._watcher = Watcher(dirs, self._heard)
        self._wake = asyncio.Event()
        self._dirty: set[Path] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look until what is there is known, then go on in the background."""
        self._watcher.start()
        if await self._reconciler.look():
            await asyncio.sleep(self._options.settle_seconds)
            await self._reconciler.look()
        self._plan()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()

    async def close(self) -> None:
        """Stop; a look under way is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._watcher.close()

    def look_soon(self) -> None:
        """Look without waiting for the next turn."""
        self._wake.set()

    def _heard(self, paths: frozenset[Path]) -> None:
        self._dirty |= paths
        self._wake.set()

    async def _run(self) -> None:
        while True:
            started = time.monotonic()
            unsettled = False
            try:
                dirty, self._dirty = self._dirty, set()
                unsettled = await self._reconciler.look(dirty, everything=not self._watcher.working)
                self._plan()
            except Exception:
                log.exception("looking at adapter folders failed; the next look is tried")
            await asyncio.sleep(max(LEAST_GAP, time.monotonic() - started))
            await self._pause(unsettled)

    async def _pause(self, unsettled: bool) -> None:
        idle = max(self._options.poll_seconds, self._reconciler.scan_seconds / SHARE)
        try:
            async with asyncio.timeout(self._options.settle_seconds if unsettled else idle):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
