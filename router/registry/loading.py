"""Bringing a version from disk into service: read, load, prove, switch. What is loaded without a request is
planned here, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import replace

from router.errors import AdapterNotFound, AdapterRejected, RouterError, Unavailable
from router.registry.folders import FoundFolder, identity, read_whole
from router.registry.format.artifact import Inspection
from router.registry.probes import Prover
from router.registry.reconcile import Reconciler
from router.registry.residency import Residency, Resident
from router.registry.state import PendingWork, PersistentCache, Workers
from router.registry.table import Table, candidate
from router.registry.version import AdapterVersion, Live

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0  # after a fault that was not the adapter's
CHANGING_SECONDS = 3.0  # how long a request waits for files to stop changing
LOOK_SECONDS = 0.1
UNEXPECTED = "an unexpected error while loading; the server's log says more"
BACKGROUND = 2  # preloads at once
MOST_WAITING = 256  # preloads: more would keep disk and interpreter busy for minutes, for what nobody asked


class Loader:
    """Loads versions in tasks of its own, so that a waiting caller may give up without harm to others."""

    def __init__(
        self,
        reconciler: Reconciler,
        residency: Residency,
        prover: Prover,
        proven: PersistentCache,
        workers: Workers,
        pending: PendingWork,
    ) -> None:
        self._reconciler, self._residency, self._prover, self._proven = reconciler, residency, prover, proven
        self._workers, self._pending = workers, pending
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, version: AdapterVersion) -> asyncio.Task[None]:
        """The load of this version that is under way, or a new one. Shield it."""
        if version.task is not None:
            return version.task
        task = asyncio.get_running_loop().create_task(self._run(version))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        version.load_began(task)
        return task

    @property
    def busy(self) -> bool:
        """Whether any load is under way."""
        return bool(self._tasks)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("%s", error)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, version: AdapterVersion) -> None:
        try:
            await self._load(version)
        except AdapterRejected as error:
            self._refuse(version, error.message)
            raise
        except RouterError as error:
            version.load_postponed(error.message, time.monotonic() + RETRY_SECONDS)
            raise
        except Exception as error:
            log.exception("loading adapter %s failed", version.ref)
            self._refuse(version, UNEXPECTED)
            raise AdapterRejected(f"adapter {version.ref}: {UNEXPECTED}") from error
        finally:
            version.load_ended()
            self._pending.plan(version.ref.name)

    async def _load(self, version: AdapterVersion) -> None:
        found, inspection, resident = await self._into_memory(version)
        try:
            key = self._prover.key(resident.digest)
            if key not in self._proven and await self._prover.prove(resident.digest, inspection):
                await self._workers.in_order(self._proven.note, key)
            if version.removed:
                raise AdapterNotFound(str(version.ref), "; its folder was removed")
            findings = (*inspection.findings, *await self._prover.notes(inspection))
            self._switch(version, Live(resident, replace(inspection, probes=(), findings=findings), found))
        finally:
            self._residency.release(resident)

    async def _into_memory(self, version: AdapterVersion) -> tuple[FoundFolder, Inspection, Resident]:
        """Read the folder as it was examined, waiting a little while it is being changed, and load it."""
        deadline = time.monotonic() + CHANGING_SECONDS
        size = version.size_bytes
        await self._residency.reserve(size)
        try:
            while True:
                found = version.load_attempted()
                try:
                    artifact, inspection = await self._workers.run(read_whole, self._reconciler.rules, found)
                    if identity(found.place, inspection) != version.ref:
                        raise Unavailable(f"the folder of adapter {version.ref} holds another one; try again")
                    break
                except Unavailable:
                    if time.monotonic() > deadline or version.removed:
                        raise
                self._pending.look({found.place.folder})
                await asyncio.sleep(LOOK_SECONDS)
        except BaseException:
            self._residency.give_back(size)
            raise
        return found, inspection, await self._residency.admit(artifact, size)

    def _switch(self, version: AdapterVersion, live: Live) -> None:
        """From here on new leases get the new files; those in flight keep the old until they end."""
        before = version.load_succeeded(live)
        self._residency.attach(live.resident, version)
        if before is not None and before.resident is not live.resident:
            self._residency.detach(before.resident, version)

    def _refuse(self, version: AdapterVersion, reason: str) -> None:
        log.warning("adapter %s is refused: %s", version.ref, reason)
        version.load_refused(reason)


# -- what is loaded without a request: new files, new versions, and defaults while they fit


class LoadPlanner:
    """Compares what is with what should be and begins the loads that are missing; can run at any time.

    A plan looks at names of which something changed, and at those for which something is still to be done.
    """

    def __init__(self, table: Table, reconciler: Reconciler, loader: Loader, residency: Residency) -> None:
        self._table, self._reconciler, self._loader, self._residency = table, reconciler, loader, residency
        self._open: dict[str, None] = {}  # names for which something is to be done, now or later
        self._queue: dict[AdapterVersion, None] = {}  # preloads; what came last is what somebody waits for
        self._begun: set[AdapterVersion] = set()  # preloads under way

    @property
    def busy(self) -> bool:
        """Whether something is to be preloaded that is not under way."""
        return bool(self._queue)

    def plan(self, names: Iterable[str]) -> None:
        """Begin what is due."""
        self._open.update(dict.fromkeys(names))
        now = time.monotonic()
        for name in tuple(self._open):
            self._succeed(name)
            if not self._begin_due(name, now):
                del self._open[name]
        self._preload()

    def _begin_due(self, name: str, now: float) -> bool:
        """Begin what is due of a name; whether something is to be done for it even so."""
        versions = self._table.versions(name)
        due = [v for v in versions if v.outdated]
        if len(versions) > 1 and not self._table.chosen(name):
            next_default = candidate(versions, self._table.default_of(name))
            due += [next_default] if next_default is not None else []
        successors = [self._table.at(v.successor) for v in versions if v.successor is not None]
        for version in (*due, *(s for s in successors if s is not None and s.live is None)):
            if version.may_load(now):
                self._loader.begin(version)
        self._queue.update(dict.fromkeys(v for v in versions if v.awaits_preload and v.task is None))
        return bool(due or successors)

    def _succeed(self, name: str) -> None:
        """Let go of versions whose folder holds another one that serves now, or none at all."""
        for version in [v for v in self._table.versions(name) if v.successor is not None]:
            successor = self._table.at(version.successor) if version.successor else None
            if successor is None or successor.proven or version.live is None:
                self._reconciler.remove(version)

    def _preload(self) -> None:
        """Begin wanted loads while they fit."""
        self._begun = {v for v in self._begun if v.task is not None}
        wanted = sorted((v for v in self._queue if not v.removed and v.awaits_preload), key=lambda v: -v.look)
        begun = at = 0  # bytes that are not set aside yet
        while at < len(wanted) and len(self._begun) < BACKGROUND:
            version, at = wanted[at], at + 1
            if version.task is None and not self._residency.fits(begun + version.size_bytes):
                version.preload_dropped()
                continue
            if version.task is None:
                self._loader.begin(version)
                begun += version.size_bytes
            self._begun.add(version)
        self._queue = dict.fromkeys(wanted[at : at + MOST_WAITING])
        for version in wanted[at + MOST_WAITING :]:  # these are loaded when they are asked for
            version.preload_dropped()
