"""The host tier: which digests the engine holds, who uses them, and what makes room for the next.
Mixtures of them stand here, too.

A digest is loaded once whatever number of versions have these bytes. It is dropped when no version serves
from it and no lease is left, never earlier. Everything here runs on the event loop, so lookup and increment
are one step; the only waiting is for the engine and for room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol, TypeAlias

from router.engine.base import AdapterArtifact, Engine, digest_of_mixture
from router.errors import Draining, FailedPrecondition, Overloaded, ResourceExhausted
from router.ports import Lease
from router.registry.format.artifact import Inspection
from router.types import AdapterRef, MixturePart

if TYPE_CHECKING:
    from router.registry.index import Index
    from router.registry.record import Live, VersionRecord

log = logging.getLogger(__name__)

MIB = 1 << 20
_ENGINE_TRIES = 3


class Owner(Protocol):
    """A version that serves from a resident digest."""

    @property
    def keeps(self) -> bool:
        """Whether it must not be evicted now."""
        ...

    def evicted(self) -> None:
        """Its digest is leaving."""
        ...


class ResidentPhase(Enum):
    """Where a digest is between disk and gone."""

    LOADING = auto()
    READY = auto()
    UNLOADING = auto()


@dataclass(eq=False, slots=True)
class Resident:
    """A digest in host memory. `size` counts against the budget from before the load until it is gone."""

    digest: str
    size: int
    phase: ResidentPhase = ResidentPhase.LOADING
    owners: set[Owner] = field(default_factory=set)
    leases: int = 0
    last_used: float = field(default_factory=time.monotonic)
    spare: bool = False  # is let go before all others: it can be made again from what stays
    retiring: asyncio.Future[int] | None = None  # an unload waits; its result is the bytes freed
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # set when the phase is left


@dataclass(slots=True)
class Room:
    """Bytes set aside for a load."""

    size: int


class Residency:
    """Digests in host memory, within a budget of bytes."""

    def __init__(self, engine: Engine, budget: int, patience: float) -> None:
        self._engine, self.budget, self._patience = engine, budget, patience
        self._table: dict[str, Resident] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.gone: Callable[[str], None] = lambda digest: None  # called with what has left
        self.used = 0

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._table.values())

    def __len__(self) -> int:
        return len(self._table)

    def keeps(self, digest: str) -> bool:
        """Whether it is here and must not be evicted now, though nobody uses it."""
        resident = self._table.get(digest)
        return resident is not None and any(owner.keeps for owner in resident.owners)

    def fits(self, size: int) -> bool:
        """Whether `size` bytes are free without evicting anybody."""
        return self.used + size <= self.budget

    # -- room

    async def reserve(self, size: int) -> Room:
        """Set `size` bytes aside, evicting what was used least recently. Raises ResourceExhausted."""
        if size > self.budget:
            raise ResourceExhausted(
                f"needs {_mib(size)} of host memory, {_mib(self.budget)} are allowed (host_memory_mb)"
            )
        deadline = time.monotonic() + self._patience
        while not self.fits(size):
            self._evict(self.used + size - self.budget)
            if not await self._change(deadline):
                raise ResourceExhausted(self._full(size))
        self.used += size
        return Room(size)

    def give_back(self, room: Room) -> None:
        """Return what is left of a reservation; harmless after it was used."""
        if room.size:
            self.used -= room.size
            room.size = 0
            self._notify()

    def _full(self, size: int) -> str:
        busy = sum(r.leases > 0 for r in self)
        return (
            f"needs {_mib(size)} of host memory, {_mib(self.budget - self.used)} of {_mib(self.budget)} are "
            f"free and nothing can be evicted: {busy} of {len(self)} adapters are in use, the others are "
            "pinned or loading"
        )

    def _evict(self, wanted: int) -> bool:
        """Begin to drop as many unused digests as `wanted` bytes need; whether any is on its way out."""
        leaving = sum(r.size for r in self if r.phase is ResidentPhase.UNLOADING)
        for victim in self._unused() if leaving < wanted else ():
            if leaving >= wanted:
                break
            leaving += victim.size
            for owner in tuple(victim.owners):
                owner.evicted()
            victim.owners.clear()
            self._unload_if_unused(victim)
        return leaving > 0

    def _unused(self) -> list[Resident]:
        """What may go, used least recently first."""
        unused = [
            r
            for r in self
            if r.phase is ResidentPhase.READY and not r.leases and not any(o.keeps for o in r.owners)
        ]
        return sorted(unused, key=lambda r: (not r.spare, r.last_used))

    async def _change(self, deadline: float) -> bool:
        """Wait until a lease or bytes were given back; False at the deadline."""
        changed = self._changed
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -- loading

    async def admit(self, artifact: AdapterArtifact, room: Room) -> Resident:
        """The digest in host memory, with one lease taken for the caller. `room` is used up by a real load.

        Raises what Engine.load raises.
        """
        outlasts = False
        while (resident := self._table.get(artifact.digest)) is not None:
            if resident.phase is not ResidentPhase.READY:
                await resident.moved.wait()
            elif resident.retiring is not None and not outlasts:
                outlasts = await self._outlasts(resident)
            else:
                self._revive(resident)
                self.acquire(resident)
                return resident
        resident = Resident(artifact.digest, room.size, spare=bool(artifact.parts))
        self._table[artifact.digest] = resident
        room.size = 0
        try:
            size = await self._into_engine(artifact)
        except BaseException:
            self._forget(resident)
            raise
        self.used += size - resident.size
        resident.size = size
        self._enter(resident, ResidentPhase.READY)
        self.acquire(resident)
        self._evict(self.used - self.budget)  # where the estimate was too low
        return resident

    async def _into_engine(self, artifact: AdapterArtifact) -> int:
        deadline = time.monotonic() + self._patience
        for _ in range(_ENGINE_TRIES):
            try:
                return await self._engine.load(artifact)
            except ResourceExhausted:  # it has less room than the budget says
                self._evict(1)
                if not await self._change(deadline):
                    raise
        return await self._engine.load(artifact)

    async def _outlasts(self, resident: Resident) -> bool:
        """Wait a while for an unload that waits for leases; True if the leases last longer."""
        try:
            async with asyncio.timeout(self._patience):
                await resident.moved.wait()
        except TimeoutError:
            return True
        return False

    def _revive(self, resident: Resident) -> None:
        if resident.retiring is not None:
            resident.retiring.set_result(0)
            resident.retiring = None

    # -- use

    def acquire(self, resident: Resident) -> None:
        """Take a lease. The caller saw it READY in this very step of the event loop."""
        resident.leases += 1
        resident.last_used = time.monotonic()

    def release(self, resident: Resident) -> None:
        """Give a lease back; the last one of a digest that no version serves from drops it."""
        resident.leases -= 1
        resident.last_used = time.monotonic()
        if not resident.leases:
            self._unload_if_unused(resident)
            self._notify()

    def attach(self, resident: Resident, owner: Owner) -> None:
        """`owner` serves from it now."""
        resident.owners.add(owner)

    def detach(self, resident: Resident, owner: Owner) -> None:
        """`owner` serves from it no longer: it is dropped after its last lease."""
        resident.owners.discard(owner)
        self._unload_if_unused(resident)

    def retire(self, resident: Resident, owner: Owner) -> asyncio.Future[int]:
        """Like `detach`; the future gives the bytes freed once it is gone (0 if it is used further).

        It may be awaited by several callers; shield it.
        """
        if resident.retiring is None:
            resident.retiring = asyncio.get_running_loop().create_future()
        future = resident.retiring
        resident.owners.discard(owner)
        if resident.owners:
            self._revive(resident)
        self._unload_if_unused(resident)
        return future

    # -- leaving

    def _unload_if_unused(self, resident: Resident) -> None:
        if resident.phase is ResidentPhase.READY and not resident.leases and not resident.owners:
            self._enter(resident, ResidentPhase.UNLOADING)
            task = asyncio.get_running_loop().create_task(self._unload(resident))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _unload(self, resident: Resident) -> None:
        freed = 0
        try:
            freed = await self._engine.unload(resident.digest)
        except Exception:
            log.exception("the engine could not unload %s", resident.digest[:12])
        finally:
            self._forget(resident)
            if resident.retiring is not None and not resident.retiring.done():
                resident.retiring.set_result(freed)

    def _forget(self, resident: Resident) -> None:
        self._table.pop(resident.digest, None)
        self.used -= resident.size
        resident.moved.set()
        self._notify()
        self.gone(resident.digest)

    def _enter(self, resident: Resident, phase: ResidentPhase) -> None:
        resident.phase = phase
        resident.moved.set()
        resident.moved = asyncio.Event()

    async def close(self) -> None:
        """Wait for unloads under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


# -- mixtures of versions in memory, kept for a while, and bounded


RETRY_SECONDS = 1.0
Hold: TypeAlias = "Callable[[AdapterRef], AbstractAsyncContextManager[tuple[VersionRecord, Live]]]"


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """A mixture in memory, and the Owner of its digest."""

    resident: Resident
    parts: frozenset[str]  # digests
    table: Mixtures

    @property
    def keeps(self) -> bool:
        """Whether anybody uses it or is about to."""
        return self.table.is_used(self.resident.digest)

    def evicted(self) -> None:
        """Its digest is leaving."""
        self.table.forget(self)


class Mixtures:
    """At most `most` at once, of `max_rank` together each; a tenant uses at most half of them at once.

    To the engine a mixture is an adapter of its own, so its rows share batches with all others. Its digest is
    made of its parts' digests and weights: another version of a part is another mixture. It is no version: no
    name leads to it, nothing lists or preloads it, it is the first to make room, and it goes with its parts.

    Used on the event loop only.
    """

    def __init__(self, index: Index, hold: Hold, residency: Residency, most: int, max_rank: int) -> None:
        """`hold` leases a version."""
        self._index, self._hold, self._residency = index, hold, residency
        self._most, self._max_rank = most, max_rank
        self._table: dict[str, Mixed] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._users: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by tenant, of each digest
        self._one = asyncio.Lock()  # one is made at a time: it costs a core
        self._closed = False
        residency.gone = self._gone

    def __len__(self) -> int:
        return len(self._table)

    def check(self, parts: Sequence[MixturePart]) -> None:
        """Raises FailedPrecondition where these cannot be mixed, as far as their folders say."""
        records = (self._index.find_usable(part.ref.name, part.ref.version) for part in parts)
        self._check((r.ref, r.serving) for r in records if r.serving is not None)

    @asynccontextmanager
    async def lease(self, parts: Sequence[MixturePart], tenant: str = "") -> AsyncIterator[Lease]:
        """Hold a mixture and its parts. See AdapterRegistry."""
        self.check(parts)
        async with AsyncExitStack() as held:
            lives = [(await held.enter_async_context(self._hold(part.ref)))[1] for part in parts]
            self._check((p.ref, live.inspection) for p, live in zip(parts, lives, strict=True))
            resident = await self._held(held, parts, lives, tenant)
            first = lives[0].inspection.manifest
            yield Lease(parts[0].ref, resident.digest, first.prompt, first.generation)

    async def close(self) -> None:
        """Make no more, and let go those that nobody uses."""
        self._closed = True
        tasks = tuple(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for mixed in self._unused():
            self._drop(mixed)

    def is_used(self, digest: str) -> bool:
        """Whether a request uses that mixture or waits for it."""
        return any(users[digest] for users in self._users.values())

    def forget(self, mixed: Mixed) -> None:
        """It is leaving memory."""
        self._table.pop(mixed.resident.digest, None)

    def _check(self, parts: Iterable[tuple[AdapterRef, Inspection]]) -> None:
        ranks: list[int] = []
        for ref, seen in parts:
            ranks.append(seen.rank)
            if seen.invocation_tokens:
                raise FailedPrecondition(
                    f"adapter {ref} is an activated LoRA, which acts from its invocation tokens on: "
                    "it cannot be part of a mixture"
                )
        if sum(ranks) > self._max_rank:
            listed = " + ".join(map(str, ranks))
            raise FailedPrecondition(
                f"the mixture has rank {listed} = {sum(ranks)}, and {self._max_rank} are served (max_rank): "
                "name fewer adapters, or some of a lower rank"
            )

    async def _held(
        self, held: AsyncExitStack, parts: Sequence[MixturePart], lives: Sequence[Live], tenant: str
    ) -> Resident:
        """The mixture's place in memory, for as long as `held` is open; made if it is not there."""
        weighed = tuple((live.resident.digest, p.weight) for live, p in zip(lives, parts, strict=True))
        digest = digest_of_mixture(weighed)
        held.enter_context(self._using(tenant, digest))
        while (mixed := self._table.get(digest)) is None:
            size = sum(live.resident.size for live in lives)
            await self._made(AdapterArtifact("mixture", "", digest, {}, parts=weighed), size)
        self._residency.acquire(mixed.resident)
        held.callback(self._residency.release, mixed.resident)
        return mixed.resident

    async def _made(self, mixture: AdapterArtifact, size: int) -> None:
        """Wait until it was made. Raises why it was not, the same to all who wait."""
        if self._closed:
            raise Draining("the server is stopping")
        task = self._begin(mixture, size)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise Draining("the server is stopping") from None
            raise

    @contextmanager
    def _using(self, tenant: str, digest: str) -> Iterator[None]:
        users, most = self._users[tenant], max(1, self._most // 2)
        if tenant and digest not in users and len(users) >= most:
            raise Overloaded(
                f"{most} mixtures of this tenant are in use, which is its part: try again",
                retry_after=RETRY_SECONDS,
                bound="mixtures",
            )
        users[digest] += 1
        try:
            yield
        finally:
            users[digest] -= 1
            if not users[digest]:
                del users[digest]
            if not users:
                del self._users[tenant]

    def _begin(self, mixture: AdapterArtifact, size: int) -> asyncio.Task[None]:
        """The making of it that is under way, or a new one."""
        if mixture.digest in self._making:
            return self._making[mixture.digest]
        if len(self._table) + len(self._making) >= self._most:
            self._make_place()
        task = asyncio.get_running_loop().create_task(self._make(mixture, size), name="mixture")
        self._making[mixture.digest] = task
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # perhaps nobody waits
        return task

    def _make_place(self) -> None:
        unused = self._unused()
        if not unused:
            raise Overloaded(
                f"{self._most} mixtures are in use, and no more are served at once: try again",
                retry_after=RETRY_SECONDS,
                bound="mixtures",
            )
        self._drop(min(unused, key=lambda mixed: mixed.resident.last_used))

    async def _make(self, mixture: AdapterArtifact, size: int) -> None:
        try:
            resident = await self._into_memory(mixture, size)
        finally:
            del self._making[mixture.digest]
        mixed = Mixed(resident, frozenset(digest for digest, _ in mixture.parts), self)
        self._table[mixture.digest] = mixed
        self._residency.attach(resident, mixed)
        self._residency.release(resident)
        if not self.is_used(mixture.digest):  # all gave up, so nobody has kept its parts here
            self._drop(mixed)

    async def _into_memory(self, mixture: AdapterArtifact, size: int) -> Resident:
        room = await self._residency.reserve(size)
        try:
            async with self._one:
                return await self._residency.admit(mixture, room)
        finally:
            self._residency.give_back(room)

    def _unused(self) -> list[Mixed]:
        return [mixed for digest, mixed in self._table.items() if not self.is_used(digest)]

    def _drop(self, mixed: Mixed) -> None:
        self.forget(mixed)
        self._residency.detach(mixed.resident, mixed)

    def _gone(self, digest: str) -> None:
        """A digest has left memory: what is made of it goes, too. Nobody uses it, or its parts were held."""
        for mixed in [mixed for mixed in self._table.values() if digest in mixed.parts]:
            self._drop(mixed)
