"""Bringing a version from disk into service: read, load, prove, flip. One at a time for each version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from router.errors import AdapterNotFound, AdapterRejected, RouterError, Unavailable
from router.registry.disk.discovery import Found
from router.registry.disk.reading import Reader, identity, read_whole
from router.registry.format.inspection import Inspection
from router.registry.proving import Prover, Verdict
from router.registry.record import Live, Record
from router.registry.residency import Residency
from router.registry.resident import Resident, Room
from router.registry.snapshot import Counters
from router.registry.state import Proven
from router.registry.workers import Workers
from router.types import AdapterRef

log = logging.getLogger(__name__)

READS_AT_ONCE = 4
RETRY_SECONDS = 10.0  # after a fault that was not the adapter's
CHANGING_SECONDS = 3.0  # how long a request waits for files to stop changing
LOOK_SECONDS = 0.1
UNEXPECTED = "an unexpected error while loading; the server's log says more"

OnLoad = Callable[[AdapterRef, float], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the loader tells others, on the event loop."""

    changed: Callable[[Record], None]  # something users see changed
    look: Callable[[], None]  # files are not as they were when they were examined
    loaded: OnLoad  # a load ended well, after so many seconds


class Loader:
    """Loads versions in tasks of its own: whoever waits for one may give up without harm to the others."""

    def __init__(
        self,
        reader: Reader,
        residency: Residency,
        prover: Prover,
        proven: Proven,
        workers: Workers,
        counters: Counters,
        hooks: Hooks,
    ) -> None:
        self._reader, self._residency, self._prover, self._proven = reader, residency, prover, proven
        self._workers, self._counters, self._hooks = workers, counters, hooks
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, record: Record) -> asyncio.Task[None]:
        """The load of this version that is under way, or a new one. Shield it."""
        if record.task is None:
            record.task = asyncio.get_running_loop().create_task(self._run(record))
            self._tasks.add(record.task)
            record.task.add_done_callback(self._ended)
            self._hooks.changed(record)
        return record.task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("%s", error)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, record: Record) -> None:
        started = time.monotonic()
        try:
            await self._load(record)
        except AdapterRejected as error:
            self._refuse(record, error.message)
            raise
        except RouterError as error:
            self._postpone(record, error.message)
            raise
        except Exception as error:
            log.exception("loading adapter %s failed", record.ref)
            self._refuse(record, UNEXPECTED)
            raise AdapterRejected(f"adapter {record.ref}: {UNEXPECTED}") from error
        else:
            seconds = time.monotonic() - started
            self._counters.loads += 1
            self._counters.load_seconds += seconds
            self._hooks.loaded(record.ref, seconds)
        finally:
            record.task = None
            self._hooks.changed(record)

    async def _load(self, record: Record) -> None:
        room = await self._residency.reserve(record.inspection.size_bytes if record.inspection else 0)
        try:
            found, inspection, resident = await self._into_memory(record, room)
        finally:
            self._residency.give_back(room)
        try:
            verdict = await self._prove(resident.digest, inspection)
            if verdict is Verdict.UNKNOWN and record.live is not None:
                raise Unavailable(f"the probes of adapter {record.ref} did not end; the old files serve on")
            if record.removed:
                raise AdapterNotFound(str(record.ref), "; its folder was removed")
            self._flip(record, Live(resident, replace(inspection, probes=()), found.stamp), verdict)
        finally:
            self._residency.release(resident)

    async def _into_memory(self, record: Record, room: Room) -> tuple[Found, Inspection, Resident]:
        """Read the folder as it was examined, waiting a little while it is being changed, and load it."""
        deadline = time.monotonic() + CHANGING_SECONDS
        while True:
            found = record.found
            record.attempt = found.stamp
            try:
                async with self._reads:
                    folder = await self._workers.run(read_whole, self._reader, found)
                    if identity(found.place, folder.inspection) != record.ref:
                        raise Unavailable(f"the folder of adapter {record.ref} holds another one; try again")
                    return found, folder.inspection, await self._residency.admit(folder.artifact, room)
            except Unavailable:
                if time.monotonic() > deadline or record.removed:
                    raise
            self._hooks.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _prove(self, digest: str, inspection: Inspection) -> Verdict:
        key = self._prover.key(digest)
        if key in self._proven:
            return Verdict.PROVEN
        try:
            verdict = await self._prover.prove(digest, inspection)
        except AdapterRejected:
            self._counters.probes_failed += 1
            raise
        if verdict is Verdict.PROVEN:
            await self._workers.in_order(self._proven.add, key)
        return verdict

    def _flip(self, record: Record, live: Live, verdict: Verdict) -> None:
        """From here on new leases get the new files; those in flight keep the old until they end."""
        old, record.live = record.live, live
        self._residency.attach(live.resident, record)
        if old is not None and old.resident is not live.resident:
            self._residency.detach(old.resident, record)
            self._counters.swaps += 1
        record.inspection, record.weighed = live.inspection, (live.stamp, live.inspection.weights_sha256)
        record.was_live, record.proven = True, verdict is not Verdict.UNKNOWN
        record.quarantined = record.wanted = False
        record.retry_at = time.monotonic() + RETRY_SECONDS if verdict is Verdict.UNKNOWN else 0.0
        record.lost = live.stamp != record.found.stamp == record.tried  # replaced by bad files meanwhile
        if not record.lost:
            record.error, record.tried = "", None

    def _refuse(self, record: Record, reason: str) -> None:
        self._counters.load_failures += 1
        record.wanted = False
        log.warning("adapter %s is refused: %s", record.ref, reason)
        if (
            record.attempt == record.found.stamp
        ):  # else there are other files by now: nothing is known of them
            record.tried = record.attempt
            refuse(record, reason)

    def _postpone(self, record: Record, reason: str) -> None:
        self._counters.load_failures += 1
        record.error, record.wanted = reason, False
        record.retry_at = time.monotonic() + RETRY_SECONDS


def refuse(record: Record, reason: str) -> None:
    """The files on disk cannot be served: the version is quarantined unless it serves from older ones."""
    if record.live is None:
        record.quarantined, record.proven = True, False
        record.error = reason
    else:
        record.lost = True
        record.error = f"the files on disk are refused, those read before serve on: {reason}"
