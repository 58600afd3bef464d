"""How much a client may ask for, and all clients of its tenant together: calls at once, calls and tokens a
minute, outcomes a second and a day.

What one level refuses is taken from neither. Edges that share their clients tell each other what was used:
what was used elsewhere is taken here too, there or not, so that all together give no more than one would, but
for what they let in before they know of each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from router.access.clients import Client, Tenant
from router.errors import QuotaExceeded

MINUTE, DAY = 60.0, 86_400.0
BURST_SECONDS = 10.0  # of outcomes a second, so many seconds' worth may come at once
ROUNDING = 1e-6  # what came back evenly may miss a whole number by
TELL_SECONDS = 60.0  # an edge tells for so long what was used
BUSY_SECONDS = 1.0  # when to try again where calls have to end first: nobody knows
CALLS, TOKENS = "requests_per_minute", "tokens_per_minute"
OUTCOMES, ROWS = "outcomes_per_second", "outcomes_per_day"
RATES: Mapping[str, tuple[float, float]] = {  # seconds in which it fills, and how many times it holds that
    CALLS: (MINUTE, 1),
    TOKENS: (MINUTE, 1),
    OUTCOMES: (BURST_SECONDS, BURST_SECONDS),
    ROWS: (DAY, 1),
}
TEXTS = {
    CALLS: "{who} may make {most} calls a minute",
    TOKENS: "{who} has {most} tokens a minute, and prompt and max_tokens need {size}",
    OUTCOMES: "{who} may record {most} outcomes a second",
    ROWS: "{who} may record {most} outcomes a day, and {size} are to be",
}


class TokenBucket:
    """Fills up to `most` within `seconds`. What is in it may be taken at once; what is new of it is full."""

    def __init__(self, now: float, seconds: float = MINUTE) -> None:
        self._level, self._at, self._most, self._seconds = 0.0, now, 0.0, seconds
        self.taken = 0.0  # at this edge since it started, less what was given back

    def wait(self, size: float, most: float, now: float) -> float:
        """Seconds until that much can be taken; 0 if it can be now, infinite if it never can."""
        grown = max(most - self._most, 0)
        self._level = min(self._level + grown + (now - self._at) * most / self._seconds, most)
        self._at, self._most = now, most
        if size <= self._level + ROUNDING:
            return 0.0
        return (size - self._level) * self._seconds / most if size <= most else math.inf

    def take(self, size: float) -> None:
        """Take it, there or not: what is not there is owed."""
        self._level -= size
        self.taken += size

    def give(self, size: float) -> None:
        """Put back what was not used."""
        self._level = min(self._level + size, self._most)
        self.taken -= size

    def taken_elsewhere(self, size: float, now: float) -> None:
        """Another edge took so much, or gave it back where that is negative."""
        if self._most:  # else nobody has asked here yet, and what fills it is not known
            self.wait(0, self._most, now)
        self._level = min(self._level - size, self._most)


@dataclass(eq=False, slots=True)
class _Used:
    """What a client or a tenant uses: buckets by their quotas, in the order in which edges tell of them."""

    buckets: Mapping[str, TokenBucket]
    running: int = 0
    elsewhere: dict[str, float] = field(default_factory=dict)  # running at other edges, by edge

    @property
    def at_once(self) -> float:
        """Calls that run, at all edges."""
        return self.running + sum(self.elsewhere.values())

    @classmethod
    def since(cls, now: float) -> _Used:
        return cls({quota: TokenBucket(now, seconds) for quota, (seconds, _) in RATES.items()})


@dataclass(frozen=True, slots=True)
class _Level:
    """A client or its tenant in one call: what they may use, and what they use."""

    kind: str  # client or tenant
    holder: Client | Tenant
    used: _Used

    def __str__(self) -> str:
        return self.holder.id if self.kind == "client" else f"the tenant {self.holder.id}"

    def bound(self, quota: str) -> int:
        """What the file says; 0: there is no bound."""
        return int(getattr(self.holder, quota))

    def wait(self, quota: str, size: float, now: float) -> float:
        """Seconds until so much of a quota that has a bound can be taken; 0 if it can be now."""
        return self.used.buckets[quota].wait(size, self.bound(quota) * RATES[quota][1], now)

    def refusal(self, quota: str, text: str, wait: float) -> QuotaExceeded:
        """The error that says which quota of whom is used up, for so many seconds."""
        name = quota if self.kind == "client" else f"{self.kind}.{quota}"
        after = wait if math.isfinite(wait) else None
        return QuotaExceeded(text, name, after, holder=f"{self.kind}:{self.holder.id}")


def _bounded(levels: Iterable[_Level], *quotas: str) -> list[tuple[_Level, str]]:
    """Those of the quotas that have a bound."""
    return [(level, quota) for quota in quotas for level in levels if level.bound(quota)]


def _take(draws: Sequence[tuple[_Level, str]], size: float, now: float) -> None:
    """From all, or from none: then QuotaExceeded tells of the one that takes longest."""
    waits = [level.wait(quota, size, now) for level, quota in draws]
    if (longest := max(waits, default=0.0)) > 0:
        level, quota = draws[waits.index(longest)]
        text = TEXTS[quota].format(who=level, most=level.bound(quota), size=int(size))
        raise level.refusal(quota, text, longest)
    for level, quota in draws:
        level.used.buckets[quota].take(size)


class Quotas:
    """Counts for every client and tenant that has a quota; lives on one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._used: dict[tuple[str, str], _Used] = {}
        self._used_here: dict[str, tuple[list[float], float]] = {}  # and when it was another one last
        self._used_there: dict[str, dict[str, Sequence[float]]] = {}  # by edge and holder, as reported last

    @contextmanager
    def call(self, client: Client) -> Iterator[UsageMeter | None]:
        """One call of the client; tokens that were reserved and not used are given back at its end.

        None where neither it nor its tenant has a quota. Raises QuotaExceeded.
        """
        if not client.metered:
            yield None
            return
        levels = self._levels(client)
        for level in levels:
            if 0 < (most := level.holder.max_concurrent) <= level.used.at_once:
                raise level.refusal("max_concurrent", f"{most} calls of {level} are running", BUSY_SECONDS)
        _take(_bounded(levels, CALLS), 1, self._now())
        meter = UsageMeter(levels, self._now)
        for level in levels:
            level.used.running += 1
        try:
            yield meter
        finally:
            for level in levels:
                level.used.running -= 1
            meter.settle()

    # -- with other edges

    def used(self) -> dict[str, list[float]]:
        """What was used here since the start, and runs now, by holder (`client:ID`, `tenant:ID`): of those of
        whom that is another than TELL_SECONDS ago."""
        now = self._now()
        for (kind, holder), used in self._used.items():
            key, totals = f"{kind}:{holder}", [*(b.taken for b in used.buckets.values()), float(used.running)]
            if key not in self._used_here or self._used_here[key][0] != totals:
                self._used_here[key] = totals, now
        return {key: totals for key, (totals, at) in self._used_here.items() if now - at < TELL_SECONDS}

    def used_elsewhere(self, edges: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """What all other edges report. Of one that is seen for the first time only what it
        uses from now on counts."""
        for edge, totals in edges.items():
            known = self._used_there.get(edge)
            for holder, now in totals.items():
                self._count(edge, holder, now, now if known is None else known.get(holder, ()))
            self._used_there[edge] = {**(known or {}), **totals}
        for edge in [edge for edge in self._used_there if edge not in edges]:
            del self._used_there[edge]
        for used in self._used.values():
            used.elsewhere = {edge: n for edge, n in used.elsewhere.items() if edge in edges}

    def _count(self, edge: str, holder: str, now: Sequence[float], before: Sequence[float]) -> None:
        kind, _, name = holder.partition(":")
        used = self._used.setdefault((kind, name), _Used.since(self._now()))
        for bucket, total, known in zip(
            used.buckets.values(), now, before or (0.0,) * len(now), strict=False
        ):
            bucket.taken_elsewhere(total - known, self._now())
        used.elsewhere[edge] = now[-1]

    def _levels(self, client: Client) -> tuple[_Level, ...]:
        found: list[_Level] = []
        holders: tuple[tuple[str, Client | Tenant], ...] = (("client", client), ("tenant", client.group))
        for kind, holder in holders:
            if holder.bounded:
                used = self._used.setdefault((kind, holder.id), _Used.since(self._now()))
                found.append(_Level(kind, holder, used))
        return tuple(found)


@dataclass(eq=False, slots=True)
class UsageMeter:
    """What one call uses: tokens of its answer, or outcomes that it brings."""

    _levels: tuple[_Level, ...]
    _now: Callable[[], float]
    used: int = 0  # tokens
    _reserved: int = 0

    def reserve(self, prompt: int, answer: int) -> None:
        """Take what the answer may cost, instead of what was taken before. Raises QuotaExceeded.

        The prompt counts as used from now on.
        """
        self.used = 0
        self.settle()
        _take(_bounded(self._levels, TOKENS), prompt + answer, self._now())
        self._reserved, self.used = prompt + answer, prompt

    def settle(self) -> None:
        """Give back what was not used."""
        for level, quota in _bounded(self._levels, TOKENS):
            level.used.buckets[quota].give(max(self._reserved - self.used, 0))
        self._reserved = 0

    def take_outcomes(self, number: int) -> None:
        """Count them against both rates. Raises QuotaExceeded, and counts none."""
        _take(_bounded(self._levels, OUTCOMES, ROWS), number, self._now())

    def owe_outcomes(self, number: int) -> None:
        """Count them; of those a second some may be owed (`owed`). Raises QuotaExceeded, and counts none,
        where the day has not so many left."""
        _take(_bounded(self._levels, ROWS), number, self._now())
        for level, quota in _bounded(self._levels, OUTCOMES):
            level.wait(quota, number, self._now())  # fills it
            level.used.buckets[quota].take(number)

    def owed(self) -> float:
        """Seconds until the next outcomes may be read; 0 if they may be now."""
        rates = _bounded(self._levels, OUTCOMES)
        return max((level.wait(quota, 0, self._now()) for level, quota in rates), default=0.0)

    def not_stored(self, number: int) -> None:
        """They were counted and are not kept: the day has them back."""
        for level, quota in _bounded(self._levels, ROWS):
            level.used.buckets[quota].give(number)
