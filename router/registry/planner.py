"""What is loaded without being asked for: new files, new versions, and defaults while they fit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from heapq import heappop, heappush, nsmallest
from itertools import count

from router.registry.index import Index, candidate
from router.registry.loading import Loader
from router.registry.record import Record
from router.registry.residency import Residency

BACKGROUND = 2  # preloads at once
MOST_WAITING = 256  # preloads: more would keep disk and interpreter busy for minutes, for what nobody asked


class Planner:
    """Compares what is with what should be and begins the loads that are missing; can run at any time.

    A plan looks at names of which something changed, and at those for which something is still to be done.
    """

    def __init__(self, index: Index, loader: Loader, residency: Residency) -> None:
        self._index, self._loader, self._residency = index, loader, residency
        self._soon = self._closed = False
        self._waiting = False  # something becomes due when a load ends; else only news from disk matters
        self._open: dict[str, None] = {}  # names for which something is to be done, now or later
        self._queue: list[tuple[int, int, Record]] = []  # a heap: what came last is what somebody waits for
        self._queued: set[Record] = set()
        self._number = count()
        self._begun: set[Record] = set()  # preloads under way

    def plan_soon(self) -> None:
        """Plan in the next turn of the event loop, once for all calls until then."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self.plan)

    def load_ended(self) -> None:
        """Plan, if something waits for that."""
        if self._waiting:
            self.plan_soon()

    @property
    def busy(self) -> bool:
        """Whether something is to be preloaded that is not under way."""
        fresh = (r for name in self._index.restless for r in self._index.versions(name))
        return bool(self._queue) or any(r.awaits_preload and r.task is None for r in fresh)

    def close(self) -> None:
        """Begin nothing any more: the load that is cancelled next must not make room for another."""
        self._closed = True

    def plan(self) -> None:
        """Begin what is due."""
        self._soon = False
        if self._closed:
            return
        self._hear()
        for name in tuple(self._open):
            self._succeed(name)
        self._hear()
        now = time.monotonic()
        for name in tuple(self._open):
            if not self._begin_due(name, now):
                del self._open[name]
        self._waiting = self._preload() or bool(self._open)

    def vanish(self, record: Record) -> None:
        """Gone from disk: no new lease, dropped after the last one."""
        live = self._index.remove(record)
        if live is not None:
            self._residency.detach(live.resident, record)

    def _hear(self) -> None:
        self._open.update(self._index.restless)
        self._index.restless.clear()

    def _begin_due(self, name: str, now: float) -> bool:
        """Begin what is due of a name; whether something is to be done for it even so."""
        versions = self._index.versions(name)
        rising = self._rising(name)
        heirs = [self._index.get(r.successor) for r in versions if r.successor is not None]
        due = [r for r in versions if r.outdated or r is rising]
        for record in (*due, *(heir for heir in heirs if heir is not None and heir.live is None)):
            if record.may_load(now):
                self._loader.begin(record)
        self._enqueue(versions)
        return bool(due or heirs)

    def _rising(self, name: str) -> Record | None:
        """A version that should take over as default once it is proven."""
        versions = self._index.versions(name)
        if len(versions) < 2 or self._index.chosen(name):
            return None
        return candidate(versions, self._index.default_of(name))

    def _succeed(self, name: str) -> None:
        """Let go of versions whose folder holds another one that serves now, or none at all."""
        for record in [r for r in self._index.versions(name) if r.successor is not None]:
            successor = self._index.get(record.successor) if record.successor else None
            if successor is None or successor.proven or record.live is None:
                self.vanish(record)

    def _enqueue(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.awaits_preload and record.task is None and record not in self._queued:
                self._queued.add(record)
                heappush(self._queue, (-record.look, next(self._number), record))

    def _preload(self) -> bool:
        """Begin wanted loads while they fit; whether some have to wait."""
        self._begun = {r for r in self._begun if r.task is not None}
        begun = 0  # bytes that are not set aside yet
        while self._queue:
            if len(self._begun) >= BACKGROUND:
                self._keep_few()
                return True
            record = heappop(self._queue)[2]
            self._queued.discard(record)
            if record.removed or not record.awaits_preload:
                continue
            if record.task is None and not self._residency.fits(begun + record.size_bytes):
                record.preload_dropped()
                continue
            if record.task is None:
                self._loader.begin(record)
                begun += record.size_bytes
            self._begun.add(record)
        return False

    def _keep_few(self) -> None:
        """The others are loaded when they are asked for."""
        if len(self._queue) <= MOST_WAITING:
            return
        kept = nsmallest(MOST_WAITING, self._queue)
        self._queued = {record for _, _, record in kept}
        for _, _, record in self._queue:
            if record not in self._queued:
                record.preload_dropped()
        self._queue = kept  # sorted, so a heap
