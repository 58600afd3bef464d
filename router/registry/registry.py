"""The registry: adapter folders on one side, leases of loaded versions on the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from router.config import Settings
from router.engine.base import Engine
from router.engine.constrained.templates import ConstraintTemplates
from router.errors import AdapterNotFound, AdapterRejected, Draining
from router.ports import Force, Lease, Measured, SharedDocuments
from router.registry.folders import FolderReader, Scanner
from router.registry.format.artifact import FolderRules
from router.registry.format.checks import EqualsBase
from router.registry.format.folder import read_document
from router.registry.format.trust import Trust
from router.registry.gate import Gate, GateMode, WeightHasher
from router.registry.index import Chooser, EventHub, Index
from router.registry.loading import Loader, LoadPlanner, Prover
from router.registry.mixtures import Mixtures
from router.registry.reconcile import Reconciler
from router.registry.record import Live, VersionRecord
from router.registry.residency import Residency, ResidentPhase
from router.registry.state import DefaultChoices, Hashed, Proven, Workers, state_dir
from router.registry.watching import LookLoop
from router.types import (
    EVERYTHING,
    AdapterEvent,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    MixturePart,
    Visible,
)

JUDGED_SECONDS = 2.0  # a start waits so long for weights to be compared with reports


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
    equals_base: EqualsBase | None = None  # tells copies of base matrices from changed ones

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The options that `settings` gives. Raises ConfigError for keys or a lock that cannot be used."""
        return cls(
            host_memory_bytes=settings.host_memory_mb << 20,
            max_rank=settings.max_rank,
            gate=settings.gate,
            trust=Trust.of(settings.require_signed, settings.adapters_lock),
        )


class Registry:
    """Implements router.ports.AdapterRegistry over adapter folders in `dirs`.

    Everything but `start` and `close` may be called at any time on the event loop that ran `start`; the
    engine must have started. Duplicates of a version: the folder that comes first in `dirs` and by name wins.
    `caught_up` is called there when all of a mass of folders was examined.
    """

    def __init__(
        self,
        engine: Engine,
        dirs: Sequence[Path],
        options: RegistryOptions | None = None,
        *,
        reader: FolderReader | None = None,
        templates: ConstraintTemplates | None = None,
        caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        options = options or RegistryOptions()
        self._workers, self._hub, self._trust = Workers(), EventHub(), options.trust
        state = state_dir(dirs, options.state_dir)
        self._choices, self._proven = DefaultChoices(state, dirs), Proven(state)
        self._residency = Residency(engine, options.host_memory_bytes, options.room_seconds)
        self._gate = Gate(lambda: engine.info, self._choices, options.gate)
        self._hashed = Hashed(state)
        self._hasher = WeightHasher(self._workers, self._hashed)
        self._index = Index(
            self._hub,
            self._choices,
            self._gate,
            options.preload,
            self._hasher.request,
            lambda: self._planner.plan_soon(),
        )
        self._chooser = Chooser(self._index, self._choices, self._gate)
        rules = FolderRules(None, options.max_rank, options.equals_base, options.trust)
        reader = reader or FolderReader(engine, rules)
        prover = Prover(engine, lambda p: self._workers.run(engine.encode, p), templates)
        self._loader = Loader(
            reader,
            self._residency,
            prover,
            self._proven,
            self._workers,
            changed=lambda folder: self._look_loop.look_soon(folder),
            ended=lambda: self._planner.load_ended(),
        )
        self._planner = LoadPlanner(self._index, self._loader, self._residency)
        self._patience, self._closed = options.room_seconds, False
        self._mixtures = Mixtures(
            self._index, self._hold, self._residency, options.max_mixtures, options.max_rank
        )
        self._reconciler = Reconciler(
            Scanner(dirs),
            options.settle_seconds,
            reader,
            self._workers,
            self._index,
            self._gate,
            self._planner.remove,
            options.grace_seconds,
            caught_up,
        )
        self._look_loop = LookLoop(
            dirs, self._reconciler, self._planner.plan, options.poll_seconds, options.settle_seconds
        )

    # -- life

    def share(self, documents: SharedDocuments) -> None:
        """What is chosen holds for all who have `documents`, too; before `start`."""
        self._chooser.shared = documents

    async def start(self) -> None:
        """Find what is there, then watch. Defaults are loaded in the background; see `settled`."""
        await self._workers.in_order(self._choices.read)
        await self._chooser.start()
        await self._workers.in_order(self._proven.read)
        await self._workers.in_order(self._hashed.read)
        await self._look_loop.start()
        await self._hasher.settled(JUDGED_SECONDS)

    async def settled(self, timeout: float) -> bool:
        """Wait until no load is under way or planned; False if that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._loader.busy or self._planner.busy:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    @property
    def flaws(self) -> list[str]:
        """What is wrong and holds up no request: the list of digests, looks at the folders, defaults of other
        edges that this one cannot serve."""
        own = [self._trust.problem if self._trust is not None else "", self._look_loop.problem]
        return [*filter(None, own), *self._chooser.flaws]

    async def close(self) -> None:
        """Stop watching and loading; leases that are held stay good until the engine closes."""
        self._closed = True
        await self._mixtures.close()
        await self._look_loop.close()
        await self._hasher.close()
        self._planner.close()
        await self._loader.close()
        await self._residency.close()
        await self._chooser.close()
        self._hub.close()
        await self._workers.close()

    # -- what there is

    def resolve(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """The version, or the default version of `name`. Raises AdapterNotFound, or AdapterRejected with the
        reason.
        """
        return self._index.info(self._index.find_usable(name, version, visible))

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """Default versions that may be routed to: the same objects while nothing changed."""
        return self._index.profiles()

    def why_none(self, visible: Visible = EVERYTHING) -> str:
        """Why no adapter can be routed to: one sentence, '' where one can."""
        return self._index.why_none(visible)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` on the event loop when `profiles` may have changed."""
        self._hub.subscribe(changed)

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

    def list(self) -> tuple[AdapterInfo, ...]:
        """Every version, quarantined ones too, by name and version."""
        return tuple(self._index.listed())

    def listed(self, after: AdapterRef | None = None) -> Iterator[AdapterInfo]:
        """The versions behind `after`; nothing may change meanwhile."""
        return self._index.listed(after)

    def count(self) -> int:
        """How many versions there are."""
        return len(self._index)

    def resident(self) -> Iterator[AdapterInfo]:
        """The versions that are in memory, in no order."""
        owners = (owner for resident in self._residency for owner in resident.owners)
        return (self._index.info(owner) for owner in owners if isinstance(owner, VersionRecord))

    def keeps(self, digest: str) -> bool:
        """Whether it is loaded and must stay so: it is pinned, or somebody waits for it."""
        return self._residency.keeps(digest)

    def get(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """Like `resolve`, but a quarantined version is returned too."""
        return self._index.info(self._index.find(name, version, visible))

    def etag(self, ref: AdapterRef) -> str:
        """Changes with every change of that version."""
        return self._index.etag(self._index.find(ref.name, ref.version))

    def measured(self, ref: AdapterRef) -> Measured | None:
        """The score and gain of the report that was read of it; None without one."""
        judgement = self._index.find(ref.name, ref.version).judgement
        if judgement is None or judgement.report is None:
            return None
        score, gain = judgement.report.score, judgement.report.gain
        return Measured(
            judgement.report.metric, (score.value, score.low, score.high), (gain.value, gain.low, gain.high)
        )

    async def document(self, ref: AdapterRef, name: str) -> bytes | None:
        """A file of its folder that is for people; None where there is none, or it is refused."""
        record = self._index.find(ref.name, ref.version)
        if record.quarantined:
            return None
        return await asyncio.to_thread(read_document, record.found.place.folder, name)

    def leases(self) -> int:
        """How many are held, also of versions that were replaced or removed since."""
        return sum(resident.leases for resident in self._residency)

    async def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """Make it the default, on the disk too; it holds after restarts. Gives it and the default before."""
        return await self._chooser.set(ref, etag, force)

    async def reset_default(self, name: str) -> tuple[AdapterInfo, AdapterRef | None]:
        """Let the rule decide again; gives the new default and the one before."""
        return await self._chooser.reset(name)

    def watch(self) -> AsyncGenerator[AdapterEvent, None]:
        """The present set as ADDED, then every change. A slow reader gets the last event of each version,
        never all.
        """
        return self._hub.watch(self._index.refs, self._index.look_up)

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
    async def _hold(self, ref: AdapterRef) -> AsyncIterator[tuple[VersionRecord, Live]]:
        """Like `lease`; gives the version, and what it serves from."""
        record, live = await self._acquire(ref)
        try:
            yield record, live
        finally:
            record.released()
            self._residency.release(live.resident)

    async def _acquire(self, ref: AdapterRef) -> tuple[VersionRecord, Live]:
        while True:
            record = self._index.find_usable(ref.name, ref.version)
            live = record.live or await self._not_unloading(record)
            if live is not None:  # lookup and increment in one step: nothing can unload it in between
                self._residency.acquire(live.resident)
                record.leased()
                return record, live
            await self._loaded(record)

    async def _not_unloading(self, record: VersionRecord) -> Live | None:
        """Wait for an unload under way, but not for ever: who holds a lease may need another to finish."""
        unloading = record.unloading
        if unloading is None or unloading.freed.done():
            return None
        await asyncio.wait({unloading.freed}, timeout=self._patience)
        resident = unloading.live.resident
        if unloading.freed.done() or resident.phase is not ResidentPhase.READY or record.removed:
            return None
        return record.live or unloading.live

    async def _loaded(self, record: VersionRecord) -> None:
        """Wait until it was loaded. Raises why it was not, the same to all that wait."""
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

    async def load(self, ref: AdapterRef, pinned: bool | None = None) -> AdapterInfo:
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
                await self._loaded(record)
        except BaseException:
            record.pin(before)
            raise
        return self._index.info(record)

    async def unload(self, ref: AdapterRef) -> tuple[AdapterInfo, int]:
        """Drop a version from memory and wait until it is gone; gives the bytes freed.

        It loses its pin. New leases wait for the end of this and load it again. Cancelling the wait does not
        take it back.
        """
        record = self._index.find(ref.name, ref.version)
        if record.task is not None:
            await asyncio.wait({record.task})
        unloading = record.unloading
        if record.live is not None:
            unloading = record.unloaded(self._residency.retire(record.live.resident, record))
        elif unloading is None or unloading.freed.done():
            return self._index.info(record), 0
        freed = await asyncio.shield(unloading.freed)
        return self._index.info(record), freed
