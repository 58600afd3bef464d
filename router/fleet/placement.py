"""Which replica has which adapter, and which of them answers a request. Arithmetic on what was measured: no
clock, no network, no engine. Edges and the simulation in `benchmarks/` use it alike.

The load of an adapter is how many of its requests run or wait at a time, as a decayed mean: by Little's law
its requests a second times the seconds of each, so a slow replica counts for what it takes.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

MEMORY = 10.0  # seconds after which a change of load has been seen to 63 %
HEADROOM = 2.0  # an adapter has homes for twice its share of all load
COOL = 1.5  # a home goes when that many times the load would not need it
UNEVEN = 0.25  # of the mean load of a replica: what is moved for
WARM = 0.01  # below that an adapter is as if it had no load
MOVES = 8  # of one look


@dataclass(frozen=True, slots=True)
class Move:
    """`digest` gets a home, loses one, or both: loaded there first."""

    digest: str
    to: str = ""
    away: str = ""


@dataclass(slots=True)
class Gauge:
    """A mean over time of how many there are."""

    count: int = 0
    mean: float = 0.0
    at: float = 0.0

    def look(self, now: float) -> float:
        """The mean now."""
        kept = math.exp(min(0.0, self.at - now) / MEMORY)
        self.mean = self.count + (self.mean - self.count) * kept
        self.at = now
        return self.mean

    def change(self, by: int, now: float) -> None:
        """So many more, or fewer, from now on."""
        self.look(now)
        self.count += by


@dataclass(slots=True)
class Placement:
    """Homes of adapters on replicas, by name. Times are seconds of one clock."""

    draw: random.Random = field(default_factory=random.Random)
    held: Counter[str] = field(default_factory=Counter)  # requests by replica, running or waiting
    used: Counter[str] = field(default_factory=Counter)  # bytes of adapters, by replica
    closing: set[str] = field(default_factory=set)  # replicas whose adapters are on their way to others
    _homes: dict[str, list[str]] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)  # adapters at home, by replica
    _gauges: dict[str, Gauge] = field(default_factory=dict)  # of adapters that have some load
    _base: Gauge = field(default_factory=Gauge)

    @property
    def replicas(self) -> tuple[str, ...]:
        """Those that are up."""
        return tuple(self._count)

    def homes(self, digest: str) -> tuple[str, ...]:
        """Where it lives."""
        return tuple(self._homes.get(digest, ()))

    def load(self, digest: str, now: float) -> float:
        """Its requests at a time."""
        gauge = self._gauges.get(digest)
        return gauge.look(now) if gauge is not None else 0.0

    # -- replicas and homes as they come and go

    def join(self, replica: str) -> None:
        """It is up, and nobody's home yet."""
        self._count.setdefault(replica, 0)

    def close(self, replica: str) -> None:
        """It becomes nobody's home any more; those who live there stay until they have another."""
        self.closing.add(replica)

    def living(self, replica: str, now: float) -> list[str]:
        """Who lives there, the busiest first."""
        there = [digest for digest, homes in self._homes.items() if replica in homes]
        return sorted(there, key=lambda digest: -self.load(digest, now))

    def leave(self, replica: str) -> tuple[str, ...]:
        """It is gone, and what it held with it; returns the adapters that have no other home."""
        for table in (self._count, self.held, self.used):
            table.pop(replica, None)
        self.closing.discard(replica)
        bereft = []
        for digest, homes in self._homes.items():
            if replica in homes:
                homes.remove(replica)
                if not homes:
                    bereft.append(digest)
        return tuple(bereft)

    def settle(self, digest: str, replica: str, size: int = 0) -> None:
        """It lives there, too, in so many bytes."""
        homes = self._homes.setdefault(digest, [])
        if replica in self._count and replica not in homes:
            homes.append(replica)
            self._count[replica] += 1
            self._sizes[digest] = size
            self.used[replica] += size
            if len(homes) > 1:  # `plan` looks whether it needs them
                self._gauges.setdefault(digest, Gauge())

    def unsettle(self, digest: str, replica: str) -> None:
        """It lives there no longer."""
        homes = self._homes.get(digest, [])
        if replica in homes:
            homes.remove(replica)
            self._count[replica] -= 1
            self.used[replica] -= self._sizes[digest]

    def forget(self, digest: str) -> None:
        """It is no adapter here any more."""
        for replica in self.homes(digest):
            self.unsettle(digest, replica)
        for table in (self._homes, self._sizes, self._gauges):
            table.pop(digest, None)

    def spare(self, replica: str) -> Iterator[str]:
        """Adapters that live there and elsewhere, too, those with the least load first."""
        several = [d for d in self._gauges if len(self._homes.get(d, ())) > 1 and replica in self._homes[d]]
        yield from sorted(several, key=lambda digest: self._gauges[digest].mean)

    # -- requests

    def begin(self, digest: str | None, replica: str, now: float) -> None:
        """A request of the adapter, or of the base, went to a replica."""
        self.held[replica] += 1
        self._gauge(digest, now).change(1, now)

    def end(self, digest: str | None, replica: str, now: float) -> None:
        """It is over, there or with its replica."""
        if replica in self._count:
            self.held[replica] -= 1
        gauge = self._base if digest is None else self._gauges.get(digest)
        if gauge is not None:
            gauge.change(-1, now)

    def choose(self, among: Collection[str]) -> str:
        """The less busy one of two that are drawn: power of two choices (Mitzenmacher 2001)."""
        names = sorted(among)
        pair = names if len(names) <= 2 else self.draw.sample(names, 2)
        if len(pair) == 2 and self.held[pair[0]] == self.held[pair[1]]:
            return self.draw.choice(pair)
        return min(pair, key=lambda name: self.held[name])

    def new_home(self, digest: str, now: float, among: Collection[str] | None = None) -> str:
        """Where it would best live beside its homes; "" if it lives everywhere.

        Where least is expected, then where fewest live, then by a hash, so that edges choose alike.
        """
        homes = self._homes.get(digest, ())
        free = [name for name in (self._open() if among is None else among) if name not in homes]
        if not free:
            return ""
        expected = self._expected(now)
        return min(free, key=lambda name: (expected[name], self._count[name], _rank(digest, name)))

    def wanted(self, digest: str, now: float) -> int:
        """How many homes its load asks for."""
        return self._wanted(self.load(digest, now), self._all(now))

    def plan(self, now: float) -> list[Move]:
        """What to change: homes for those that are hot, fewer for those that have cooled, then one move that
        makes loads more even. Looks at adapters with some load or more than one home, not at all others.
        """
        moves = list(self._grown_and_shrunk(now))
        return moves[:MOVES] or self._evened(now)

    # -- inside

    def _gauge(self, digest: str | None, now: float) -> Gauge:
        if digest is None:
            return self._base
        return self._gauges.setdefault(digest, Gauge(at=now))

    def _all(self, now: float) -> float:
        return self._base.look(now) + sum(gauge.look(now) for gauge in self._gauges.values())

    def _wanted(self, load: float, total: float) -> int:
        """Homes for twice its share of all load, but no more than it has requests at a time."""
        replicas = len(self._open())
        most = min(replicas, max(1, round(load)))
        share = min(1.0, load / total) if total > 0 else 0.0
        return max(1, min(most, math.ceil(share * HEADROOM * replicas)))

    def _open(self) -> list[str]:
        """Replicas that may become somebody's home."""
        return [name for name in self._count if name not in self.closing]

    def _expected(self, now: float) -> Mapping[str, float]:
        """Load by replica, if each adapter's is shared by its homes."""
        expected: defaultdict[str, float] = defaultdict(float)
        for digest, gauge in self._gauges.items():
            homes = self._homes.get(digest, ())
            for name in homes:
                expected[name] += gauge.look(now) / len(homes)
        return expected

    def _grown_and_shrunk(self, now: float) -> Iterator[Move]:
        total = self._all(now)
        for digest in tuple(self._gauges):
            gauge, homes = self._gauges[digest], self._homes.get(digest, ())
            load = gauge.look(now)
            if not gauge.count and load < WARM and len(homes) <= 1:
                del self._gauges[digest]
            elif 0 < len(homes) < self._wanted(load, total):
                if to := self.new_home(digest, now):
                    yield Move(digest, to=to)
            elif len(homes) > self._wanted(load * COOL, total):
                yield Move(digest, away=max(homes, key=lambda name: (name in self.closing, self.held[name])))

    def _evened(self, now: float) -> list[Move]:
        replicas = self._open()
        if len(replicas) < 2:
            return []
        expected = self._expected(now)
        most = max(replicas, key=lambda name: expected[name])
        least = min(replicas, key=lambda name: expected[name])
        gap = expected[most] - expected[least]
        if gap <= max(1.0, UNEVEN * sum(expected[name] for name in replicas) / len(replicas)):
            return []
        loads = [
            (gauge.look(now), digest)
            for digest, gauge in self._gauges.items()
            if self._homes.get(digest) == [most]
        ]
        fitting = [(load, digest) for load, digest in loads if WARM < load <= gap / 2]
        return [Move(max(fitting)[1], to=least, away=most)] if fitting else []


def _rank(digest: str, replica: str) -> bytes:
    """The order in which an adapter would choose among replicas that are alike."""
    return hashlib.sha256(f"{digest} {replica}".encode()).digest()
