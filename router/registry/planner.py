"""What is loaded without being asked for: new files, new versions, and defaults while they fit."""

from __future__ import annotations

import asyncio
import time

from router.registry.index import Index, candidate
from router.registry.loading import Loader
from router.registry.record import Record
from router.registry.residency import Residency

BACKGROUND = 2  # preloads at once


class Planner:
    """Compares what is with what should be and begins the loads that are missing; can run at any time."""

    def __init__(self, index: Index, loader: Loader, residency: Residency) -> None:
        self._index, self._loader, self._residency = index, loader, residency
        self._soon = self._closed = False
        self._waiting = False  # something becomes due when a load ends; else only news from disk matters

    def plan_soon(self) -> None:
        """Plan in the next turn of the event loop, once for all calls until then."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self.plan)

    def load_ended(self) -> None:
        """Plan, if something waits for that."""
        if self._waiting:
            self.plan_soon()

    def close(self) -> None:
        """Begin nothing any more: the load that is cancelled next must not make room for another."""
        self._closed = True

    def plan(self) -> None:
        """Begin what is due."""
        self._soon = False
        if self._closed:
            return
        self._succeed()
        now = time.monotonic()
        successors = {r.successor for r in self._index}
        names = {r.ref.name for r in self._index}
        rising = {record for name in names if (record := self._rising(name)) is not None}
        for record in tuple(self._index):
            due = record.outdated or record in rising or (record.ref in successors and record.live is None)
            if due and record.may_load(now):
                self._loader.begin(record)
        self._waiting = self._preload() or bool(rising) or any(successors)

    def vanish(self, record: Record) -> None:
        """Gone from disk: no new lease, dropped after the last one."""
        live = self._index.remove(record)
        if live is not None:
            self._residency.detach(live.resident, record)

    def _rising(self, name: str) -> Record | None:
        """A version that should take over as default once it is proven."""
        versions = self._index.versions(name)
        if len(versions) < 2 or self._index.chosen(name):
            return None
        return candidate(versions, self._index.default_of(name))

    def _succeed(self) -> None:
        """Let go of versions whose folder holds another one that serves now, or none at all."""
        for record in [r for r in self._index if r.successor is not None]:
            successor = self._index.get(record.successor) if record.successor else None
            if successor is None or successor.proven or record.live is None:
                self.vanish(record)

    def _preload(self) -> bool:
        """Begin wanted loads while they fit; whether some have to wait."""
        wanted = [r for r in self._index if r.awaits_preload]
        running, begun = sum(r.task is not None for r in wanted), 0  # bytes that are not set aside yet
        for record in sorted(wanted, key=lambda r: -r.look):  # what came last is what somebody waits for
            if running >= BACKGROUND:
                return True
            if record.task is not None:
                continue
            if self._residency.fits(begun + record.size_bytes):
                self._loader.begin(record)
                running, begun = running + 1, begun + record.size_bytes
            else:
                record.preload_dropped()
        return False
