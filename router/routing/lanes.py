"""The lanes of all classifiers, kept in step with what plugins register."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router.plugins.registration import Registration
from router.routing.fitting import BaseFor
from router.routing.lane import Lane
from router.types import AdapterProfile


class Lanes:
    """One lane for each classifier, in the order in which they are asked."""

    def __init__(self, base_for: BaseFor | None = None) -> None:
        """`base_for` makes the base for one classifier; None: those that want it are not asked."""
        self._base_for = base_for
        self._lanes: dict[str, Lane] = {}
        self._predecessors: dict[str, Lane] = {}
        self._order: tuple[str, ...] = ()

    def sync(self, registrations: Sequence[Registration], profiles: Sequence[AdapterProfile]) -> None:
        """Open lanes for new classifiers and close those of classifiers gone.

        A reloaded classifier takes over when it is warmed up and fitted; until then its predecessor answers.
        """
        wanted = {r.name: r for r in registrations}
        for name in self._lanes.keys() - wanted.keys():
            self._lanes.pop(name).close()
            self._retire(name)
        for name, registration in wanted.items():
            lane = self._lanes.get(name)
            if lane is None or lane.registration is not registration:
                self._open(registration, profiles)
        self._order = tuple(r.name for r in registrations)

    def _open(self, registration: Registration, profiles: Sequence[AdapterProfile]) -> None:
        before = self._lanes.get(registration.name)
        self._lanes[registration.name] = lane = Lane(registration, base_for=self._base_for)
        lane.fit(profiles)
        if before is not None and before.ready:
            self._retire(lane.name)
            self._predecessors[lane.name] = before
        elif before is not None:
            before.close()

    def _retire(self, name: str) -> None:
        if (old := self._predecessors.pop(name, None)) is not None:
            old.close()

    def in_order(self) -> list[Lane]:
        """Who is to be asked now."""
        return [self._current(name) for name in self._order]

    def _current(self, name: str) -> Lane:
        lane = self._lanes[name]
        if name in self._predecessors:
            if not lane.ready:
                return self._predecessors[name]
            self._retire(name)
        return lane

    async def fit(self, profiles: Sequence[AdapterProfile], wait: float) -> None:
        """Have all learn these adapters; returns when they have, or after `wait` seconds."""
        for lane in (*self._lanes.values(), *self._predecessors.values()):
            lane.fit(profiles)
        await self.settle(wait)

    async def settle(self, wait: float) -> None:
        """Wait at most `wait` seconds for fits in progress, not for those that go behind all requests."""
        lanes = (lane for lane in self._lanes.values() if not lane.registration.wants_base)
        running = {task for lane in lanes if (task := lane.fitter.running) is not None}
        if running:
            await asyncio.wait(running, timeout=wait)

    def close(self) -> None:
        """Close all."""
        for lane in (*self._lanes.values(), *self._predecessors.values()):
            lane.close()
        self._lanes, self._predecessors, self._order = {}, {}, ()
