"""The registry: adapter folders on one side, leases of loaded versions on the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from router.engine.base import Engine
from router.ports import Force, Lease, Measured, SharedDocuments
from router.registry.choosing import Chooser
from router.registry.disk.places import Scanner
from router.registry.disk.reading import FolderReader, Reader
from router.registry.events import EventHub
from router.registry.format.documents import read_document
from router.registry.gatekeeper import Gatekeeper, WeightHasher
from router.registry.index import Index
from router.registry.leases import Leases
from router.registry.loading import Hooks, Loader, Prover
from router.registry.mixtures import Mixtures
from router.registry.options import RegistryOptions, Workers
from router.registry.persistent_cache import Hashed, Proven
from router.registry.planner import Planner
from router.registry.reconcile import Reconciler
from router.registry.record import Record
from router.registry.residency import Residency
from router.registry.state import Choices, state_dir
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
        reader: Reader | None = None,
        caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        options = options or RegistryOptions()
        self._workers, self._hub, self._trust = Workers(), EventHub(), options.trust
        state = state_dir(dirs, options.state_dir)
        self._choices, self._proven = Choices(state, dirs), Proven(state)
        self._residency = Residency(engine, options.host_memory_bytes, options.room_seconds)
        self._gatekeeper = Gatekeeper(lambda: engine.info, self._choices, options.gate)
        self._hashed = Hashed(state)
        self._hasher = WeightHasher(self._workers, self._hashed)
        self._index = Index(
            self._hub,
            self._choices,
            self._gatekeeper,
            options.preload,
            self._hasher.ask,
            lambda: self._planner.plan_soon(),
        )
        self._chooser = Chooser(self._index, self._choices, self._gatekeeper)
        reader = reader or FolderReader(
            engine, options.max_rank, options.ignore_fields, options.equals_base, options.trust
        )
        prover = Prover(engine, lambda p: self._workers.run(engine.encode, p), options.probe_seconds)
        hooks = Hooks(
            look=lambda folder: self._look_loop.look_soon(folder),
            ended=lambda: self._planner.load_ended(),
        )
        self._loader = Loader(reader, self._residency, prover, self._proven, self._workers, hooks)
        self._planner = Planner(self._index, self._loader, self._residency)
        self._leases = Leases(self._index, self._loader, self._residency, options.room_seconds)
        self._mixtures = Mixtures(
            self._index, self._leases, self._residency, options.max_mixtures, options.max_rank
        )
        self._reconciler = Reconciler(
            Scanner(dirs),
            options.settle_seconds,
            reader,
            self._workers,
            self._index,
            self._gatekeeper,
            self._planner.vanish,
            options.grace_seconds,
            caught_up,
        )
        self._look_loop = LookLoop(dirs, self._reconciler, self._planner.plan, options)

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
        self._leases.close()
        await self._mixtures.close()
        await self._look_loop.close()
        await self._reconciler.close()
        await self._hasher.close()
        self._planner.close()
        await self._loader.close()
        await self._residency.close()
        await self._chooser.close()
        self._hub.close()
        await self._workers.close()

    # -- Catalog

    def resolve(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """See Catalog."""
        return self._index.info(self._index.find_usable(name, version, visible))

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """See Catalog."""
        return self._index.profiles()

    def why_none(self, visible: Visible = EVERYTHING) -> str:
        """See Catalog."""
        return self._index.why_none(visible)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """See Catalog."""
        self._hub.subscribe(changed)

    # -- AdapterRegistry

    def lease(self, ref: AdapterRef, deadline: float | None = None) -> AbstractAsyncContextManager[Lease]:
        """See AdapterRegistry. `deadline` (time.monotonic() seconds) bounds the wait for a load."""
        return self._leases.lease(ref, deadline)

    def check_mixture(self, parts: Sequence[MixturePart]) -> None:
        """See AdapterRegistry."""
        self._mixtures.check(parts)

    def lease_mixture(
        self, parts: Sequence[MixturePart], tenant: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        """See AdapterRegistry."""
        return self._mixtures.lease(parts, tenant)

    def mixtures(self) -> int:
        """See AdapterRegistry."""
        return len(self._mixtures)

    def list(self) -> tuple[AdapterInfo, ...]:
        """See AdapterRegistry."""
        return tuple(self._index.listed())

    def listed(self, after: AdapterRef | None = None) -> Iterator[AdapterInfo]:
        """See AdapterRegistry."""
        return self._index.listed(after)

    def count(self) -> int:
        """See AdapterRegistry."""
        return len(self._index)

    def resident(self) -> Iterator[AdapterInfo]:
        """See AdapterRegistry."""
        owners = (owner for resident in self._residency for owner in resident.owners)
        return (self._index.info(owner) for owner in owners if isinstance(owner, Record))

    def keeps(self, digest: str) -> bool:
        """Whether it is loaded and must stay so: it is pinned, or somebody waits for it."""
        return self._residency.keeps(digest)

    def get(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """See AdapterRegistry."""
        return self._index.info(self._index.find(name, version, visible))

    def etag(self, ref: AdapterRef) -> str:
        """See AdapterRegistry."""
        return self._index.etag(self._index.find(ref.name, ref.version))

    def measured(self, ref: AdapterRef) -> Measured | None:
        """See AdapterRegistry."""
        judgement = self._index.find(ref.name, ref.version).judgement
        if judgement is None or judgement.report is None:
            return None
        score, gain = judgement.report.score, judgement.report.gain
        return Measured(
            judgement.report.metric, (score.value, score.low, score.high), (gain.value, gain.low, gain.high)
        )

    async def document(self, ref: AdapterRef, name: str) -> bytes | None:
        """See AdapterRegistry."""
        record = self._index.find(ref.name, ref.version)
        if record.quarantined:
            return None
        return await asyncio.to_thread(read_document, record.found.place.folder, name)

    def leases(self) -> int:
        """See AdapterRegistry."""
        return sum(resident.leases for resident in self._residency)

    async def load(self, ref: AdapterRef, pinned: bool | None = None) -> AdapterInfo:
        """See AdapterRegistry. A quarantined version is tried again."""
        return self._index.info(await self._leases.load(ref, pinned))

    async def unload(self, ref: AdapterRef) -> tuple[AdapterInfo, int]:
        """See AdapterRegistry. The version loses its pin."""
        record, freed = await self._leases.unload(ref)
        return self._index.info(record), freed

    async def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """See AdapterRegistry. Holds after restarts, until another one is set."""
        return await self._chooser.set(ref, etag, force)

    async def reset_default(self, name: str) -> tuple[AdapterInfo, AdapterRef | None]:
        """See AdapterRegistry."""
        return await self._chooser.reset(name)

    def watch(self) -> AsyncGenerator[AdapterEvent, None]:
        """See AdapterRegistry. A slow reader gets the last event of each version, never all."""
        return self._hub.watch(self._index.refs, self._index.look_up)
