"""The requests of the last week, counted as they end: outcomes, times, tokens, lost votes. In memory.

Each range (15 minutes, 1 hour, 24 hours, 7 days) is a ring of slots, and each slot counts. Times are kept in
a histogram whose buckets grow by a factor, so that any percentile is right to within half of that factor
(the idea of DDSketch, Masson et al., VLDB 2019), and histograms of slots can be added up. Adapters have rings
of their own with fewer slots. The number of slots, `MOST_ADAPTERS` and `MOST_REASONS` bound the memory.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np

from router.server.call import Call

LEAST, GROWTH, BUCKETS = 0.001, 1.05, 320  # seconds of the first bucket; the last one begins at 1.6 hours
LOG_GROWTH = math.log(GROWTH)
NONE = np.zeros(0, np.uint32)
FEWEST = 5  # requests for a median; a percentile nearer to the end needs more
MOST_ADAPTERS = 32  # versions with a count of their own in a slot: the first that come, the rest together
MOST_REASONS, MOST_CLASSIFIERS = 24, 64  # in a slot
Version = tuple[str, str]  # name and version; ("base", "") and ("mixture", "") have none
REST: Version = ("", "rest")  # of adapters, where a slot has MOST_ADAPTERS
UNROUTED: Version = ("", "")  # the request ended before anything was chosen
OTHER = "other"


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """The request, its sender, or the load did not allow it."""
    FAILED = "failed"
    """The server could not answer, or not in time."""
    CANCELLED = "cancelled"
    """By the client."""


FAILURES = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
NO_FAILURES = frozenset({"QUEUE_FULL", "DRAINING", "MODEL_LOADING"})  # reasons of UNAVAILABLE


def outcome_of(code: str, reason: str) -> Outcome:
    """Of a status and the reason of its error.

    >>> str(outcome_of("OK", "")), str(outcome_of("UNAVAILABLE", "QUEUE_FULL"))
    ('answered', 'refused')
    """
    if code in ("OK", "CANCELLED"):
        return Outcome.ANSWERED if code == "OK" else Outcome.CANCELLED
    return Outcome.FAILED if code in FAILURES and reason not in NO_FAILURES else Outcome.REFUSED


class Times:
    """A histogram of times, in seconds: percentiles are right to within 2.5 %."""

    __slots__ = ("buckets", "count")

    def __init__(self) -> None:
        self.buckets, self.count = NONE, 0  # without room of its own before the first

    @staticmethod
    def bucket(seconds: float) -> int:
        """Where a time counts."""
        if seconds <= LEAST:
            return 0
        return min(1 + int(math.log(seconds / LEAST) / LOG_GROWTH), BUCKETS - 1)

    def add(self, bucket: int) -> None:
        """Count one."""
        if not self.count:
            self.buckets = np.zeros(BUCKETS, np.uint32)
        self.buckets[bucket] += 1
        self.count += 1

    def merge(self, other: Times) -> None:
        """Add what another counted."""
        if other.count and not self.count:
            self.buckets = other.buckets.copy()
        elif other.count:
            self.buckets += other.buckets
        self.count += other.count

    def percentile(self, share: float) -> float | None:
        """None where so few were counted that it would be an extreme: below 5 for 0.5, 20 for 0.95, 100 for
        0.99."""
        if self.count < needed(share):
            return None
        rank = share * (self.count - 1)
        bucket = int(np.searchsorted(np.cumsum(self.buckets), rank, side="right"))
        return LEAST * GROWTH ** (bucket - 0.5) if bucket else LEAST


def needed(share: float) -> int:
    """How many times a percentile needs.

    >>> needed(0.5), needed(0.95), needed(0.99)
    (5, 20, 100)
    """
    return max(FEWEST, math.ceil(1 / (1 - share) - 1e-9))


class AdapterCount:
    """Of one version."""

    __slots__ = ("outcomes", "times", "tokens")

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.tokens = 0
        self.times = Times()  # of answered requests, from arrival to end

    @property
    def requests(self) -> int:
        """Of all outcomes."""
        return self.outcomes.total()

    def merge(self, other: AdapterCount) -> None:
        """Add what another counted."""
        self.outcomes.update(other.outcomes)
        self.tokens += other.tokens
        self.times.merge(other.times)


class TrafficCount(AdapterCount):
    """Of all requests; gauges are the highest that were seen. Only the newest range has reasons and votes."""

    __slots__ = ("first", "lost", "reasons", "running", "telemetry", "votes", "waiting")

    def __init__(self) -> None:
        super().__init__()
        self.first = Times()  # from submission to the first token
        self.reasons: dict[Outcome, Counter[str]] = {}  # of errors
        self.votes: Counter[str] = Counter()  # by classifier
        self.lost: Counter[str] = Counter()  # of them, votes that did not come
        self.running = self.waiting = 0
        self.telemetry = 0  # spans and readings that the collector did not take

    def merge(self, other: AdapterCount) -> None:
        """Add what another counted."""
        super().merge(other)
        if isinstance(other, TrafficCount):
            self.first.merge(other.first)
            self.votes.update(other.votes)
            self.lost.update(other.lost)
            for outcome, reasons in other.reasons.items():
                self.reasons.setdefault(outcome, Counter()).update(reasons)
            self.telemetry += other.telemetry
            self.running, self.waiting = max(self.running, other.running), max(self.waiting, other.waiting)


T = TypeVar("T")


class Ring(Generic[T]):
    """`slots` times `seconds`, in which values are counted; the oldest is dropped. Slots without anything are
    not made. Time is that of a monotonic clock."""

    def __init__(self, seconds: float, slots: int, make: Callable[[], T]) -> None:
        self.seconds, self.slots, self._make = seconds, slots, make
        self._kept: deque[tuple[int, T]] = deque(maxlen=slots)

    def at(self, now: float) -> T:
        """The slot of this moment."""
        number = int(now // self.seconds)
        if not self._kept or self._kept[-1][0] != number:
            self._kept.append((number, self._make()))
        return self._kept[-1][1]

    def each(self, now: float) -> Iterator[tuple[int, T]]:
        """The slots of its span with anything in them: the place, from 0 to `slots` - 1, and what it has."""
        first = int(now // self.seconds) - self.slots + 1
        return ((number - first, value) for number, value in self._kept if number >= first)

    def since(self, now: float, seconds: float) -> Iterator[T]:
        """The slots of the last seconds, the present one included."""
        first = int(now // self.seconds) - round(seconds / self.seconds) + 1
        return (value for number, value in self._kept if number >= first)


@dataclass(frozen=True, slots=True)
class Range:
    """What a page shows: its span in seconds, and how many slots all requests and adapters have in it."""

    name: str
    title: str
    seconds: float
    slots: int
    adapter_slots: int


RANGES: Mapping[str, Range] = {
    one.name: one
    for one in (
        Range("15m", "15 minutes", 900.0, 90, 30),
        Range("1h", "1 hour", 3600.0, 60, 30),
        Range("24h", "24 hours", 86_400.0, 96, 24),
        Range("7d", "7 days", 604_800.0, 84, 28),
    )
}
LATELY = RANGES["15m"]
ByVersion = dict[Version, AdapterCount]


@dataclass(slots=True)
class Rings:
    """Of one range."""

    of: Range
    all: Ring[TrafficCount] = field(init=False)
    adapters: Ring[ByVersion] = field(init=False)

    def __post_init__(self) -> None:
        self.all = Ring(self.of.seconds / self.of.slots, self.of.slots, TrafficCount)
        make: Callable[[], ByVersion] = dict
        self.adapters = Ring(self.of.seconds / self.of.adapter_slots, self.of.adapter_slots, make)


class Traffic:
    """Counts every request that ends (`ended` is an observer of the server's metrics). Lives on the event
    loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._began = now, now()
        self.rings = {name: Rings(one) for name, one in RANGES.items()}

    def ended(self, call: Call, code: str, reason: str) -> None:
        """A request has ended with that status; `reason` is that of its error."""
        now, outcome = self._now(), outcome_of(code, reason)
        whole = Times.bucket(time.monotonic() - call.started) if outcome is Outcome.ANSWERED else -1
        usage, decision = call.usage, call.decision
        tokens = usage.completion_tokens if usage is not None else 0
        first = Times.bucket(usage.time_to_first_token) if usage is not None and tokens else -1
        version = decision.answered_by if decision is not None else UNROUTED
        for rings in self.rings.values():
            total, adapters = rings.all.at(now), rings.adapters.at(now)
            room = version in adapters or len(adapters) < MOST_ADAPTERS
            who = version if room else REST
            if (own := adapters.get(who)) is None:
                own = adapters[who] = AdapterCount()
            for count in (total, own):
                count.outcomes[outcome] += 1
                count.tokens += tokens
                if whole >= 0:
                    count.times.add(whole)
            if first >= 0:
                total.first.add(first)
        lately = self.rings[LATELY.name].all.at(now)
        if outcome is not Outcome.ANSWERED:
            reasons = lately.reasons.setdefault(outcome, Counter())
            reasons[bounded(reasons, reason or code, MOST_REASONS)] += 1
        for vote in call.votes:
            name = bounded(lately.votes, vote.classifier, MOST_CLASSIFIERS)
            lately.votes[name] += 1
            if vote.error:
                lately.lost[name] += 1

    def look(self, running: int, waiting: int, telemetry: int = 0) -> None:
        """What the engine has now, and how much telemetry was lost since the last look."""
        now = self._now()
        for rings in self.rings.values():
            slot = rings.all.at(now)
            slot.telemetry += telemetry
            slot.running, slot.waiting = max(slot.running, running), max(slot.waiting, waiting)

    def counted(self, of: Range) -> float:
        """Seconds of a range for which requests were counted: less than its span after a start."""
        return max(min(of.seconds, self._now() - self._began), 1.0)

    def total(self, of: Range) -> TrafficCount:
        """Of the whole range."""
        found = TrafficCount()
        for _, slot in self.rings[of.name].all.each(self._now()):
            found.merge(slot)
        return found

    def slots(self, of: Range) -> list[TrafficCount | None]:
        """Each slot of a range, the oldest first; None before anything was counted."""
        now, ring = self._now(), self.rings[of.name].all
        found: list[TrafficCount | None] = [None] * ring.slots
        for place in range(ring.slots - 1 - int(self.counted(of) // ring.seconds), ring.slots):
            if place >= 0:
                found[place] = TrafficCount()
        for place, slot in ring.each(now):
            found[place] = slot
        return found

    def minutes(self, of: Range) -> list[float]:
        """How long each slot was counted; 0 for the present one before a third of it has passed, since the
        rate of so short a time says little."""
        now, seconds = self._now(), of.seconds / of.slots
        present = now % seconds
        return [seconds / 60] * (of.slots - 1) + [present / 60 if present > seconds / 3 else 0.0]

    def versions(self, of: Range) -> dict[Version, AdapterCount]:
        """By version, of the whole range."""
        return added(slot for _, slot in self.rings[of.name].adapters.each(self._now()))

    def spark(self, of: Range, version: Version) -> list[float]:
        """Requests of a version in each slot of its ring, the oldest first."""
        ring = self.rings[of.name].adapters
        found = [0.0] * ring.slots
        for place, slot in ring.each(self._now()):
            if version in slot:
                found[place] = slot[version].requests
        return found

    def shares(self, seconds: float, visible: Callable[[str], bool]) -> dict[Version, float]:
        """Shares of requests in the last seconds, 15 minutes at most, by version that is visible."""
        ring = self.rings[LATELY.name].adapters
        counts = added(ring.since(self._now(), seconds))
        shown = {who: one.requests for who, one in counts.items() if who[0] and visible(who[0])}
        total = sum(shown.values())
        return {who: count / total for who, count in shown.items()} if total else {}


def added(slots: Iterable[ByVersion]) -> ByVersion:
    """The sum of slots."""
    found: ByVersion = {}
    for slot in slots:
        for version, count in slot.items():
            found.setdefault(version, AdapterCount()).merge(count)
    return found


def bounded(kept: Counter[str], key: str, most: int) -> str:
    """The text to count a key under: `other` where as many are kept."""
    return key if key in kept or len(kept) < most else OTHER
