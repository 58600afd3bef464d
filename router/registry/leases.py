"""Leases: a version stays in memory while a request uses it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router.errors import AdapterNotFound, AdapterRejected, DeadlineExceeded, Draining
from router.ports import Lease
from router.registry.index import Index
from router.registry.loading import Loader
from router.registry.record import Live, Record
from router.registry.residency import Phase, Residency
from router.types import AdapterRef


class Leases:
    """Gives leases and takes them back; unloading is here too, since it must agree with leasing."""

    def __init__(self, index: Index, loader: Loader, residency: Residency, patience: float) -> None:
        self._index, self._loader, self._residency, self._patience = index, loader, residency, patience
        self._closed = False

    @asynccontextmanager
    async def lease(self, ref: AdapterRef, deadline: float | None = None) -> AsyncIterator[Lease]:
        """Hold a version; a cold one is loaded first. `deadline` is in time.monotonic() seconds."""
        async with self.hold(ref, deadline) as (record, live):
            manifest = live.inspection.manifest
            yield Lease(
                ref=record.ref,
                digest=live.resident.digest,
                prompt=manifest.prompt,
                generation=manifest.generation,
                domain=manifest.domain,
                task=manifest.task,
            )

    @asynccontextmanager
    async def hold(
        self, ref: AdapterRef, deadline: float | None = None
    ) -> AsyncIterator[tuple[Record, Live]]:
        """Like `lease`; gives the version, and what it serves from."""
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                record, live = await self._acquire(ref)
        except TimeoutError:
            raise DeadlineExceeded(f"adapter {ref} was not loaded within the deadline") from None
        try:
            yield record, live
        finally:
            record.released()
            self._residency.release(live.resident)

    def close(self) -> None:
        """Wait for no load any more; leases that are held stay good."""
        self._closed = True

    async def _acquire(self, ref: AdapterRef) -> tuple[Record, Live]:
        while True:
            record = self._index.find_usable(ref.name, ref.version)
            live = record.live or await self._not_parting(record)
            if live is not None:  # lookup and increment in one step: nothing can unload it in between
                self._residency.acquire(live.resident)
                record.leased()
                return record, live
            await self.loaded(record)

    async def _not_parting(self, record: Record) -> Live | None:
        """Wait for an unload under way, but not for ever: who holds a lease may need another to finish."""
        parting = record.parting
        if parting is None or parting.freed.done():
            return None
        await asyncio.wait({parting.freed}, timeout=self._patience)
        resident = parting.live.resident
        if parting.freed.done() or resident.phase is not Phase.READY or record.removed:
            return None
        return record.live or parting.live

    async def loaded(self, record: Record) -> None:
        """Wait until it was loaded. Raises why it was not, the same to all who wait."""
        if self._closed:
            raise Draining("the server is stopping")
        task = self._loader.begin(record)
        try:
            with record.awaited():
                await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise Draining("the server is stopping") from None
            raise

    async def load(self, ref: AdapterRef, pinned: bool | None) -> Record:
        """Bring a version into memory, also one that was refused before (its files may be mended)."""
        record = self._index.find(ref.name, ref.version)
        if record.duplicate:
            raise AdapterRejected(f"adapter {record.ref} is quarantined: {record.error}")
        before = record.pinned
        record.pin(before if pinned is None else pinned)
        try:
            while record.live is None:
                if record.removed:
                    raise AdapterNotFound(str(ref), "; its folder was removed")
                await self.loaded(record)
        except BaseException:
            record.pin(before)
            raise
        return record

    async def unload(self, ref: AdapterRef) -> tuple[Record, int]:
        """Drop a version from memory and wait until it is gone; gives the bytes freed.

        It loses its pin. New leases wait for the end of this and load it again. Cancelling the wait does not
        take it back.
        """
        record = self._index.find(ref.name, ref.version)
        if record.task is not None:
            await asyncio.wait({record.task})
        parting = record.parting
        if record.live is not None:
            parting = record.unloaded(self._residency.retire(record.live.resident, record))
        elif parting is None or parting.freed.done():
            return record, 0
        return record, await asyncio.shield(parting.freed)


def _loop_time(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    return asyncio.get_running_loop().time() + deadline - time.monotonic()
