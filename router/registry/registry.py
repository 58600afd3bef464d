"""The registry: adapter folders on one side, leases of loaded versions on the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from router.config import Settings
from router.engine.base import Engine
from router.engine.constrained.templates import ConstraintTemplates
from router.errors import AdapterNotFound, Draining
from router.ports import Force, Lease, SharedDocuments
from router.registry.choices import DefaultChoices
from router.registry.defaults import DefaultVersions, NewDefault
from router.registry.folders import Settling
from router.registry.format.artifact import FolderRules
from router.registry.format.trust import Trust
from router.registry.gate import Gate, GateMode
from router.registry.loading import Loader, LoadPlanner
from router.registry.mixtures import Mixtures
from router.registry.probes import Prover
from router.registry.reconcile import Reconciler
from router.registry.residency import Residency
from router.registry.state import PendingWork, Workers, hashes_in, proven_in, state_dir
from router.registry.table import Table
from router.registry.version import AdapterVersion, Live
from router.registry.watching import FolderWatcher
from router.reread import problem_of
from router.types import (
    AdapterInfo,
    AdapterRef,
    MixturePart,
)

log = logging.getLogger(__name__)

LEAST_GAP = 0.1  # seconds between two looks, however often the kernel reports something
SHARE = 0.05  # of the time that may go into scans of every file when nothing happens


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """Times are seconds, sizes bytes."""

    host_memory_bytes: int = 2048 << 20
    max_rank: int = 64
    max_mixtures: int = 16  # at once; each costs as much memory as an adapter of all its parts' ranks
    preload: bool = True  # defaults that fit: their first requests do not wait
    gate: GateMode = "replacements"
    poll_seconds: float = 1.0  # between comparisons of folders, for changes that the kernel does not tell
    settle_seconds: float = 0.35  # a folder that looks the same after so long is read
    grace_seconds: float = 3.0  # a bad folder that looks the same for so long is quarantined
    room_seconds: float = 5.0  # how long a load waits for memory, or for an unload under way
    state_dir: Path | None = None  # the user's state folder if None
    trust: Trust | None = None  # who may bring adapters; None: who can write the folder

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The options that `settings` gives. Raises ConfigError for keys or a lock that cannot be used."""
        return cls(
            host_memory_bytes=settings.host_memory_mb << 20,
            max_rank=settings.max_rank,
            gate=settings.gate,
            trust=Trust.of(settings.require_signed, settings.adapters_lock),
        )


class Registry(Table):
    """Implements router.ports.AdapterRegistry over adapter folders in `dirs`.

    Everything but `start` and `close` may be called at any time on the event loop that ran `start`; the
    engine must have started. Duplicates of a version: the folder that comes first in `dirs` and by name wins.

    One task reconciles the table with the folders, takes over what other edges chose, and begins loads in
    the background: as pending work comes, and at intervals. Everything it changes is a method of
    AdapterVersion or Table, called on the event loop and done when the call returns, so a request sees
    one state or the next.
    """

    def __init__(
        self,
        engine: Engine,
        dirs: Sequence[Path],
        options: RegistryOptions | None = None,
        *,
        templates: ConstraintTemplates | None = None,
    ) -> None:
        self._options = options = options or RegistryOptions()
        self._engine, self._trust = engine, options.trust
        self._workers, pending = Workers(), PendingWork()
        state = state_dir(dirs, options.state_dir)
        choices = DefaultChoices(state, dirs)
        gate = Gate(engine, choices, options.gate)
        super().__init__(choices, gate, pending, options.preload)
        self._proven, self._hashes = proven_in(state), hashes_in(state)
        self._residency = Residency(engine, options.host_memory_bytes, options.room_seconds)
        self._reconciler = Reconciler(
            Settling(dirs, options.settle_seconds, options.grace_seconds),
            FolderRules(None, options.max_rank, options.trust),
            self._workers,
            self,
            self._residency,
            self._hashes,
        )
        prover = Prover(engine, self._workers, templates)
        self._loader = Loader(self._reconciler, self._residency, prover, self._proven, self._workers, pending)
        self._planner = LoadPlanner(self, self._reconciler, self._loader, self._residency)
        self._default_versions = DefaultVersions(self, choices, gate, pending, self._reconciler.read_weights)
        self._mixtures = Mixtures(self, self._hold, self._residency, options.max_mixtures, options.max_rank)
        self._watcher = FolderWatcher(dirs, pending)
        self._due = 0.0  # when the next scan of every file is due, monotonic
        self._problem = ""  # why the last look failed; empty if it did not
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    # -- life

    def share(self, documents: SharedDocuments) -> None:
        """What is chosen holds for all who have `documents`, too; before `start`."""
        self._default_versions.shared = documents

    async def start(self) -> None:
        """Examine what is there, then watch. Defaults are loaded in the background; see `settled`."""
        self._reconciler.rules = replace(self._reconciler.rules, base=self._engine.info)
        await self._default_versions.start()
        await self._workers.in_order(self._proven.read)
        await self._workers.in_order(self._hashes.read)
        self._watcher.start()
        if await self._look(every_file=True):
            await asyncio.sleep(self._options.settle_seconds)
            await self._look(every_file=False)
        self._plan()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Do the pending work, until it is cancelled."""
        last, unsettled = time.monotonic(), True
        while True:
            now = time.monotonic()
            try:
                if now >= self._next_look(last, unsettled):
                    last, unsettled = now, True
                    unsettled = await self._look(every_file=now >= self._due)
                    self._problem = ""
                await self._default_versions.catch_up()
                self._plan()
            except Exception as error:
                self._failed(error)
            pause = self._next_look(last, unsettled) - time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(pause, 0.0)):
                    await self._pending.wake.wait()
            self._pending.wake.clear()

    def _next_look(self, last: float, unsettled: bool) -> float:
        """When to look, after a look at the time `last`."""
        soon = last + self._options.settle_seconds if unsettled else self._due
        return max(last + LEAST_GAP, min(self._due, last if self._pending.dirty else soon))

    async def _look(self, every_file: bool) -> bool:
        dirty, self._pending.dirty = self._pending.dirty, set()
        try:
            return await self._reconciler.look(dirty, every_file)
        except BaseException:
            self._pending.dirty |= dirty
            raise
        finally:
            if every_file:
                rest = max(self._options.poll_seconds, self._reconciler.scan_seconds / SHARE)
                self._due = time.monotonic() + rest

    def _failed(self, error: Exception) -> None:
        """Note it, with one traceback for each problem: looks go on, several a second."""
        problem = f"adapter folders cannot be looked at: {problem_of(error)}"
        if problem != self._problem:
            log.error("looking at adapter folders failed; it is tried again", exc_info=error)
        self._problem = problem

    def _plan(self) -> None:
        names, self._pending.names = self._pending.names, {}
        self._planner.plan(names)

    async def settled(self, timeout: float) -> bool:
        """Wait until no load is under way or planned; False if that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._loader.busy or self._planner.busy or self._pending.names:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    @property
    def flaws(self) -> list[str]:
        """What is wrong and holds up no request: the list of digests, looks at the folders, defaults of other
        edges that this one cannot serve."""
        own = [self._trust.problem if self._trust is not None else "", self._problem]
        return [*filter(None, own), *self._default_versions.flaws]

    async def close(self) -> None:
        """Stop watching and loading; leases that are held stay good until the engine closes."""
        self._stopping = True
        await self._mixtures.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._watcher.close()
        await self._loader.close()
        await self._residency.close()
        await self._default_versions.close()
        self.end_watches()
        await self._workers.close()

    # -- memory, mixtures, choices

    def check_mixture(self, parts: Sequence[MixturePart]) -> None:
        """Raises FailedPrecondition where these cannot be mixed, as far as one can see without loading."""
        self._mixtures.check(parts)

    def lease_mixture(
        self, parts: Sequence[MixturePart], tenant: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold a mixture and all its parts; what is not in memory is loaded or made first."""
        return self._mixtures.lease(parts, tenant)

    def mixtures(self) -> int:
        """How many mixtures are in memory."""
        return len(self._mixtures)

    def keeps(self, digest: str) -> bool:
        """Whether it is loaded and must stay so: it is pinned, or somebody waits for it."""
        return self._residency.keeps(digest)

    def leases(self) -> int:
        """How many are held, also of versions that were replaced or removed since."""
        return sum(resident.leases for resident in self._residency)

    async def set_default(self, ref: AdapterRef, etag: str = "", force: Force | None = None) -> NewDefault:
        """Make it the default, on the disk too; it holds after restarts. Gives it and the default before."""
        return await self._default_versions.set(ref, etag, force)

    async def reset_default(self, name: str) -> NewDefault:
        """Let the rule decide again; gives the new default and the one before."""
        return await self._default_versions.reset(name)

    # -- leases: a version stays in memory while a request uses it

    @asynccontextmanager
    async def lease(self, ref: AdapterRef) -> AsyncIterator[Lease]:
        """Hold a version; a cold one is loaded first."""
        async with self._hold(ref) as (record, live):
            manifest = live.inspection.manifest
            yield Lease(
                ref=record.ref,
                digest=live.resident.digest,
                prompt=manifest.prompt,
                generation=manifest.generation,
                domain=manifest.domain,
                task=manifest.task,
                labels=manifest.labels,
            )

    @asynccontextmanager
    async def _hold(self, ref: AdapterRef) -> AsyncIterator[tuple[AdapterVersion, Live]]:
        """Like `lease`; gives the version, and what it serves from."""
        while True:
            version = self.find_usable(ref.name, ref.version)
            if (live := version.live) is not None:
                break
            await self._loaded(version)
        # Lookup and increment in one step: nothing can unload it in between.
        self._residency.acquire(live.resident)
        try:
            with version.leased():
                yield version, live
        finally:
            self._residency.release(live.resident)

    async def _loaded(self, version: AdapterVersion) -> None:
        """Wait until it was loaded. Raises why it was not, the same to all that wait."""
        if self._stopping:
            raise Draining("the server is stopping")
        task = self._loader.begin(version)
        try:
            with version.awaited():
                await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._stopping and task.cancelled():
                raise Draining("the server is stopping") from None
            raise

    async def load(self, ref: AdapterRef, pinned: bool | None = None) -> AdapterInfo:
        """Bring a version into memory, also one that was refused before (its files may be mended)."""
        version = self.find(ref.name, ref.version)
        before = version.pinned
        version.pin(before if pinned is None else pinned)
        try:
            while version.live is None:
                if version.removed:
                    raise AdapterNotFound(str(ref), "; its folder was removed")
                await self._loaded(version)
        except BaseException:
            version.pin(before)
            raise
        return self.info(version)

    async def unload(self, ref: AdapterRef) -> tuple[AdapterInfo, int]:
        """Drop a version from memory and wait until it is gone; gives the bytes freed, 0 if a request has
        brought it back meanwhile. It loses its pin. Cancelling the wait does not take it back.
        """
        version = self.find(ref.name, ref.version)
        if version.task is not None:
            await asyncio.wait({version.task})
        if version.live is not None:
            self._residency.detach(version.unloaded().resident, version)
        leaving = version.unloading
        freed = await self._residency.left(leaving) if leaving is not None else 0
        return self.info(version), freed
