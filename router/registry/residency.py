"""The host tier: which digests the engine holds, who uses them, and what makes room for the next.

A digest is loaded once whatever number of versions have these bytes. It is dropped when no version serves
from it and no lease is left, never earlier. Everything here runs on the event loop, so lookup and increment
are one step; the only waiting is for the engine and for room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from router.engine.base import AdapterArtifact, Engine
from router.errors import ResourceExhausted

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
    """A digest in host memory. `size` counts against the budget from before the load until it is gone.

    One with `parts` is a mixture of these digests: it stays when nobody uses it, is let go before all others,
    and goes with its parts.
    """

    digest: str
    size: int
    parts: frozenset[str] = frozenset()
    phase: ResidentPhase = ResidentPhase.LOADING
    owners: set[Owner] = field(default_factory=set)
    leases: int = 0
    freed: int = 0  # bytes, once it is gone
    last_used: float = field(default_factory=time.monotonic)

    @property
    def evictable(self) -> bool:
        """Whether nobody uses it or wants it kept."""
        return self.phase is ResidentPhase.READY and not self.leases and not any(o.keeps for o in self.owners)


class Residency:
    """Digests in host memory, within a budget of bytes."""

    def __init__(self, engine: Engine, budget: int, patience: float) -> None:
        self._engine, self.budget, self._patience = engine, budget, patience
        self._table: dict[str, Resident] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.used = 0

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._table.values())

    def __len__(self) -> int:
        return len(self._table)

    def ready(self, digest: str) -> Resident | None:
        """The digest, if it can be leased at once."""
        resident = self._table.get(digest)
        return resident if resident is not None and resident.phase is ResidentPhase.READY else None

    def keeps(self, digest: str) -> bool:
        """Whether it is here and must not be evicted now, though nobody uses it."""
        resident = self._table.get(digest)
        return resident is not None and any(owner.keeps for owner in resident.owners)

    def fits(self, size: int) -> bool:
        """Whether `size` bytes are free without evicting anybody."""
        return self.used + size <= self.budget

    # -- room

    async def reserve(self, size: int) -> None:
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

    def give_back(self, size: int) -> None:
        """Return bytes that were set aside."""
        self.used -= size
        self._notify()

    def _full(self, size: int) -> str:
        busy = sum(r.leases > 0 for r in self)
        return (
            f"needs {_mib(size)} of host memory, {_mib(self.budget - self.used)} of {_mib(self.budget)} are "
            f"free and nothing can be evicted: {busy} of {len(self)} adapters are in use, the others are "
            "pinned or loading"
        )

    def _evict(self, wanted: int) -> None:
        """Begin to drop as many unused digests as `wanted` bytes need."""
        leaving = sum(r.size for r in self if r.phase is ResidentPhase.UNLOADING)
        for victim in sorted(self, key=lambda r: (not r.parts, r.last_used)):
            if leaving < wanted and victim.evictable:
                leaving += victim.size
                self.drop(victim)

    async def _change(self, deadline: float) -> bool:
        """Wait until a lease or bytes were given back; False at the deadline."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -- loading

    async def admit(self, artifact: AdapterArtifact, reserved: int) -> Resident:
        """The digest in host memory, with one lease taken for the caller. The `reserved` bytes are used for
        it, or given back. Raises what Engine.load raises.
        """
        try:
            while (resident := self._table.get(artifact.digest)) is not None:
                if resident.phase is ResidentPhase.READY:
                    self.give_back(reserved)
                    return self.acquire(resident)
                await self._changed.wait()
        except asyncio.CancelledError:
            self.give_back(reserved)
            raise
        resident = Resident(artifact.digest, reserved, frozenset(part for part, _ in artifact.parts))
        self._table[artifact.digest] = resident
        try:
            size = await self._into_engine(artifact)
        except BaseException:
            self._forget(resident)
            raise
        self.used += size - resident.size
        resident.size, resident.phase = size, ResidentPhase.READY
        self._notify()
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

    # -- use

    def acquire(self, resident: Resident) -> Resident:
        """Take a lease. The caller saw it READY in this very step of the event loop."""
        resident.leases += 1
        resident.last_used = time.monotonic()
        return resident

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
        self._notify()

    def detach(self, resident: Resident, owner: Owner) -> None:
        """`owner` serves from it no longer: it is dropped after its last lease."""
        resident.owners.discard(owner)
        self._unload_if_unused(resident)

    async def left(self, resident: Resident) -> int:
        """Wait until a digest without owners is gone; gives the bytes freed, 0 if it is served from again, or
        was gone before."""
        if self._table.get(resident.digest) is not resident:
            return 0
        while self._table.get(resident.digest) is resident and not resident.owners:
            await self._changed.wait()
        return resident.freed

    # -- leaving

    def drop(self, resident: Resident) -> None:
        """Begin to unload what nobody uses."""
        for owner in tuple(resident.owners):
            owner.evicted()
        resident.owners.clear()
        resident.phase = ResidentPhase.UNLOADING
        task = asyncio.get_running_loop().create_task(self._unload(resident))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _unload_if_unused(self, resident: Resident) -> None:
        if resident.evictable and not resident.owners and not resident.parts:
            self.drop(resident)

    async def _unload(self, resident: Resident) -> None:
        try:
            resident.freed = await self._engine.unload(resident.digest)
        except Exception:
            log.exception("the engine could not unload %s", resident.digest[:12])
        finally:
            self._forget(resident)

    def _forget(self, resident: Resident) -> None:
        del self._table[resident.digest]
        self.used -= resident.size
        self._notify()
        for mixture in [r for r in self if resident.digest in r.parts and r.evictable]:
            self.drop(mixture)

    async def close(self) -> None:
        """Wait for unloads under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
