"""What routing knows of the adapters: the set at this moment, and the set the classifiers have learned."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from router.ports import Catalog
from router.routing.labels import Labels
from router.types import AdapterProfile

log = logging.getLogger(__name__)
DEBOUNCE_SECONDS = 0.05

Learn = Callable[[tuple[AdapterProfile, ...]], Awaitable[None]]


class Knowledge:
    """Follows a catalog. `learn` is awaited for each new set, one at a time, before `labels` speak of it."""

    def __init__(self, catalog: Catalog, learn: Learn) -> None:
        self._catalog, self._learn = catalog, learn
        self.present: tuple[AdapterProfile, ...] = ()
        self.learned: tuple[AdapterProfile, ...] = ()
        self.labels = Labels(())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take the present set as learned, then follow."""
        self._catalog.subscribe(self._changed)
        self.present = self.learned = self._catalog.profiles()
        self.labels = Labels(self.present)

    def _changed(self) -> None:
        present = self._catalog.profiles()
        if present == self.present:
            return
        self.present = present
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="routing learns adapters")

    async def _follow(self) -> None:
        await asyncio.sleep(DEBOUNCE_SECONDS)
        while self.learned != self.present:
            await self._catch_up()

    async def _catch_up(self) -> None:
        target = self.present
        await self._learn(target)
        self.learned, self.labels = target, Labels(target)
        log.info("routing knows %d adapters", len(target))

    def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
