"""Default versions are set here: on the disk first, then for requests; and what may be written later is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeAlias

from router.errors import AdapterRejected, StaleEtag
from router.ports import Force
from router.registry.gate.gate import Gate
from router.registry.index import Index
from router.registry.state import Change, Choices
from router.types import AdapterInfo, AdapterRef, AdapterState

log = logging.getLogger(__name__)
Chosen: TypeAlias = tuple[AdapterInfo, AdapterRef | None]


class Chooser:
    """One change at a time, so that an etag is good for one; a change goes to its end when its caller leaves.

    Raises NotSaved where the disk does not take it: then the default is as before.
    """

    def __init__(self, index: Index, choices: Choices, gate: Gate) -> None:
        self._index, self._choices, self._gate = index, choices, gate
        self._lock, self._tasks = asyncio.Lock(), set[asyncio.Task[Any]]()
        choices.touched = self._touched

    async def set(self, ref: AdapterRef, etag: str, force: Force | None) -> Chosen:
        """Make it the default; gives it and the one before."""
        return await asyncio.shield(self._task(self._set(ref, etag, force)))

    async def reset(self, name: str) -> Chosen:
        """Let the rule decide again; gives what it decided and the default before."""
        return await asyncio.shield(self._task(self._reset(name)))

    async def close(self) -> None:
        """Finish what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, ref: AdapterRef, etag: str, force: Force | None) -> Chosen:
        async with self._lock:
            record = self._index.find(ref.name, ref.version)
            if etag and etag != self._index.etag(record):
                raise StaleEtag(f"adapter {record.ref} changed since its etag was read; read it again")
            if record.state is AdapterState.QUARANTINED:
                raise AdapterRejected(f"adapter {record.ref} is quarantined: {record.error}")
            previous = self._index.default_of(ref.name)
            serving = self._index.get(AdapterRef(ref.name, previous))
            override = self._gate.overruling(record, force, serving)
            await self._make(self._choices.planned(ref.name, record.ref.version, override))
            return self._index.info(record), AdapterRef(ref.name, previous) if previous else None

    async def _reset(self, name: str) -> Chosen:
        async with self._lock:
            self._index.find(name)
            previous = self._index.default_of(name)
            if self._choices.get(name):
                await self._make(self._choices.planned(name))
            return self._index.info(self._index.find(name)), AdapterRef(name, previous) if previous else None

    async def _make(self, change: Change) -> None:
        await asyncio.to_thread(self._choices.save, change)
        self._choices.take(change)
        self._index.settle_default(change.name)
        await self._write_rest()

    def _touched(self) -> None:
        if not self._lock.locked():  # else whoever holds it writes it
            self._task(self._later())

    async def _later(self) -> None:
        async with self._lock:
            await self._write_rest()

    async def _write_rest(self) -> None:
        """What nobody waits for: the rule made it, and would make it again."""
        while self._choices.unsaved:
            document = self._choices.document()
            try:
                await asyncio.to_thread(self._choices.write, document)
            except OSError as error:
                log.warning("holds until restart, what is known of versions that were the default: %s", error)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
