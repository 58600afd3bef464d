"""The status of a fleet: all its replicas in one, for health, metrics and admission."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from router.engine.base import EngineStatus
from router.replicas.replica import Replica

SUMS = (
    "running",
    "waiting",
    "reading",
    "background",
    "cache_blocks",
    "cache_blocks_free",
    "slots",
    "host_bytes",
)
COUNTERS = ("steps", "preemptions", "background_dropped", "prefix_hit_tokens", "prefix_query_tokens")


class Totals:
    """Counters never go back: what a replica had counted when it was lost stays in the sum."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self._replicas = replicas
        self._past: Counter[str] = Counter()
        self._down_since = time.monotonic()

    def lost(self, replica: Replica) -> None:
        """A replica is down; the next one in its place counts from 0."""
        self.left(replica)
        self._down_since = time.monotonic()

    def left(self, replica: Replica) -> None:
        """A replica is not counted any more."""
        for name in COUNTERS:
            self._past[name] += getattr(replica.status, name)
        replica.status = EngineStatus()

    def status(self, waiting: int) -> EngineStatus:
        """`waiting` are jobs that no replica has yet.

        All make progress while one replica does, or is idle and answers: one that hangs gets nothing new.
        With none up, they are busy, and their last progress was when the last one went.
        """
        found = [replica for replica in self._replicas.values() if replica.up]
        up = [replica.status for replica in found]
        busy = [status for status in up if status.busy]
        idle = any(not replica.status.busy and not replica.stalls for replica in found)
        sums = {name: sum(getattr(status, name) for status in up) for name in SUMS}
        counters = {name: self._past[name] + sum(getattr(s, name) for s in up) for name in COUNTERS}
        progress = max((status.last_progress for status in up), default=self._down_since)
        progress = time.monotonic() if idle else progress
        sums["waiting"] += waiting
        return EngineStatus(
            **sums,
            **counters,
            last_progress=progress,
            busy=bool(busy) or not up,
            device_adapters=tuple(dict.fromkeys(d for s in up for d in s.device_adapters)),
            host_adapters=tuple(dict.fromkeys(d for s in up for d in s.host_adapters)),
            flaws=tuple(self._flaws()),
        )

    def _flaws(self) -> Iterator[str]:
        for replica in self._replicas.values():
            if not replica.up and (replica.draining or not replica.problem):
                continue  # it leaves, or is starting
            if not replica.up:
                what = "is lost" if replica.losses else "does not start"
                yield f"replica {replica.name} {what}: {replica.problem}"
            elif replica.stalls:
                yield f"replica {replica.name} stalls: {replica.stalls}"
