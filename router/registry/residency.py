"""The host tier: which digests the engine holds, who uses them, and what makes room for the next.

A digest is loaded once whatever number of versions have these bytes. It is dropped when no version serves
from it and no lease is left, never earlier. Everything here runs on the event loop, so lookup and increment
are one step; the only waiting is for the engine and for room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from router.engine.base import AdapterArtifact, Engine
from router.errors import ResourceExhausted

if TYPE_CHECKING:
    pass

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
