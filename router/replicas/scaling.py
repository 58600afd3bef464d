"""How many replicas a load asks for: arithmetic on what was measured, no clock and no fleet.

Up when what runs and waits has nearly filled the places for some seconds; down, minutes later, when one
fewer would still have room. Between the two lies a band in which nothing happens, so a steady load is never
answered by both, and one that swings faster than `down_seconds` keeps what its peaks need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """What is full, what is roomy, and for how long it has to be so. Shares are of all rows."""

    full: float = 0.85  # rows that run or wait: one more is needed
    waits: float = 0.25  # jobs that wait though rows may be free: for memory, or for an adapter
    roomy: float = 0.6  # of the rows that one fewer would have
    memory: float = 5.0  # seconds after which a change of load has been seen to 63 %
    up_seconds: float = 5.0
    down_seconds: float = 180.0
    pause: float = 60.0  # after a start that failed; twice as long after each further one
    longest_pause: float = 900.0


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs of all edges, running and waiting, and the rows of a replica."""

    running: int
    waiting: int
    rows: int


@dataclass(slots=True)
class Mean:
    """A mean over time of what was there when one looked, beginning with nothing."""

    memory: float
    value: float = 0.0
    at: float = math.inf

    def look(self, now: float, there: float) -> float:
        """The mean now."""
        kept = math.exp(min(0.0, self.at - now) / self.memory)
        self.value, self.at = there + (self.value - there) * kept, now
        return self.value


class Scaler:
    """PendingCall every second or so. Times are seconds of one clock."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._demand, self._waiting = Mean(self._rules.memory), Mean(self._rules.memory)
        self._full_since = self._roomy_since = math.inf
        self._failures, self._not_before = 0, -math.inf

    def look(
        self, now: float, size: int, load: Load, least: int, most: int, *, starting: bool, leaving: int
    ) -> int:
        """1: one more, -1: one fewer, 0: as it is.

        `size` replicas are there to stay. While one is `starting`, or lost, nothing is decided; while some
        are `leaving`, none more is taken away, and they count for `most`.
        """
        rules = self._rules
        demand = self._demand.look(now, load.running + load.waiting)
        waiting = self._waiting.look(now, load.waiting)
        places = max(1, size * load.rows)
        full = demand >= rules.full * places or waiting >= max(1.0, rules.waits * places)
        roomy = demand <= rules.roomy * (size - 1) * load.rows and not full
        self._full_since = min(self._full_since, now) if full else math.inf
        self._roomy_since = min(self._roomy_since, now) if roomy else math.inf
        if starting or leaving:
            self._roomy_since = math.inf  # of a fleet that is about to be another
        if starting:
            self._full_since = math.inf
            return 0
        if size + leaving < most and now - self._full_since >= rules.up_seconds and now >= self._not_before:
            return self._decided(1)
        if size > least and now - self._roomy_since >= rules.down_seconds:
            return self._decided(-1)
        return 0

    def failed(self, now: float) -> float:
        """One more did not come up; returns after how many seconds the next may be tried."""
        pause = min(self._rules.longest_pause, self._rules.pause * 2.0**self._failures)
        self._failures += 1
        self._not_before = now + pause
        return pause

    def came(self) -> None:
        """One more came up."""
        self._failures = 0

    def _decided(self, by: int) -> int:
        self._full_since = self._roomy_since = math.inf
        return by
