"""Which replica has which adapter, and which of them answers a request. Arithmetic on what was measured: no
clock, no network, no engine. Edges and the simulation in `benchmarks/` use it alike.

The load of an adapter is how many of its requests run or wait at a time, as a decayed mean: by Little's law
its requests a second times the seconds of each, so a slow replica counts for what it takes.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice

MEMORY = 10.0  # seconds after which a change of load has been seen to 63 %
HEADROOM = 2.0  # an adapter has homes for twice its share of all load
COOL = 1.5  # a home goes when that many times the load would not need it
ALIKE = 6  # digits behind the point of a load that count
UNEVEN = 0.25  # of the mean load of a replica: what is moved for
WARM = 0.01  # below that an adapter is as if it had no load
MOVES = 8  # of one look, or one for each EIGHT replicas
EIGHT, MANY = 8, 32  # in a fleet of MANY, one in so many gives an adapter away with every look


@dataclass(frozen=True, slots=True)
class Move:
    """`digest` gets a home, loses one, or both: loaded there first."""

    digest: str
    to: str = ""
    away: str = ""


@dataclass(slots=True)
class Gauge:
    """A mean over time of how many there are."""

    count: float = 0
    mean: float = 0.0
    at: float = 0.0

    def seen(self, now: float) -> float:
        """The mean now."""
        return self.count + (self.mean - self.count) * math.exp(min(0.0, self.at - now) / MEMORY)

    def look(self, now: float) -> float:
        """The same, from which it goes on."""
        self.mean = self.seen(now)
        self.at = now
        return self.mean

    def change(self, by: float, now: float) -> None:
        """So many more, or fewer, from now on."""
        self.look(now)
        self.count += by

    def add(self, other: Gauge, share: float) -> None:
        """So much of what another one measures, too; means and counts of gauges add up."""
        now = max(self.at, other.at)
        self.mean = self.look(now) + share * other.look(now)
        self.count += share * other.count


@dataclass(slots=True)
class Placement:
    """Homes of adapters on replicas, by name. Times are seconds of one clock."""

    draw: random.Random = field(default_factory=random.Random)
    held: Counter[str] = field(default_factory=Counter)  # requests by replica, running or waiting
    used: Counter[str] = field(default_factory=Counter)  # bytes of adapters, by replica
    closing: set[str] = field(default_factory=set)  # replicas whose adapters are on their way to others
    rows: int = 0  # requests that a replica runs at a time, the others wait; 0: not known
    _homes: dict[str, list[str]] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)  # adapters at home, by replica
    _gauges: dict[str, Gauge] = field(default_factory=dict)  # of adapters that have some load
    _expected: dict[str, Gauge] = field(default_factory=dict)  # by replica, each load shared by its homes
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
        self._expected.setdefault(replica, Gauge())

    def close(self, replica: str) -> None:
        """It becomes nobody's home any more; those who live there stay until they have another."""
        self.closing.add(replica)

    def living(self, replica: str, now: float) -> list[str]:
        """Who lives there, the busiest first."""
        there = [digest for digest, homes in self._homes.items() if replica in homes]
        return sorted(there, key=lambda digest: -self.load(digest, now))

    def leave(self, replica: str) -> tuple[str, ...]:
        """It is gone, and what it held with it; returns the adapters that have no other home."""
        self.closing.discard(replica)
        homeless = []
        for digest, homes in self._homes.items():
            if replica in homes:
                self._weigh(digest, -1)
                homes.remove(replica)
                self._weigh(digest, 1)
                if not homes:
                    homeless.append(digest)
        for table in (self._count, self._expected, self.held, self.used):
            table.pop(replica, None)
        return tuple(homeless)

    def settle(self, digest: str, replica: str, size: int = 0) -> None:
        """It lives there, too, in so many bytes."""
        homes = self._homes.setdefault(digest, [])
        if replica in self._count and replica not in homes:
            self._weigh(digest, -1)
            homes.append(replica)
            self._weigh(digest, 1)
            self._count[replica] += 1
            self._sizes[digest] = size
            self.used[replica] += size
            if len(homes) > 1:  # `plan` looks whether it needs them
                self._gauges.setdefault(digest, Gauge())

    def unsettle(self, digest: str, replica: str) -> None:
        """It lives there no longer."""
        homes = self._homes.get(digest, [])
        if replica in homes:
            self._weigh(digest, -1)
            homes.remove(replica)
            self._weigh(digest, 1)
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
        if digest is not None:
            self._gauges.setdefault(digest, Gauge(at=now))
        self._change(digest, 1, now)

    def end(self, digest: str | None, replica: str, now: float) -> None:
        """It is over, there or with its replica."""
        if replica in self._count:
            self.held[replica] -= 1
        self._change(digest, -1, now)

    def drawn(self) -> tuple[str, ...]:
        """Two of those that are up, or all."""
        names = self.replicas
        return names if len(names) <= 2 else tuple(self.draw.sample(names, 2))

    def choose(self, among: Collection[str]) -> str:
        """The less busy one of two that are drawn: power of two choices (Mitzenmacher 2001)."""
        names = sorted(among)
        pair = names if len(names) <= 2 else self.draw.sample(names, 2)
        if len(pair) == 2 and self.held[pair[0]] == self.held[pair[1]]:
            return self.draw.choice(pair)
        return min(pair, key=lambda name: self.held[name])

    def overflow(self, homes: Collection[str]) -> str:
        """A replica with a free row beside `homes`, where a queue is at each of them; "" if there is none.

        Of EIGHT that are drawn, so that fleets of many cost no more. A request that goes there waits for its
        adapter instead of for others to end.
        """
        crowded = self.rows + max(1, self.rows // EIGHT)
        if not self.rows or any(self.held[name] < crowded for name in homes):
            return ""
        names = self.replicas
        names = names if len(names) <= EIGHT else tuple(self.draw.sample(names, EIGHT))
        free = [n for n in names if n not in homes and n not in self.closing and self.held[n] < self.rows]
        return min(free, key=lambda name: self.held[name], default="")

    def new_home(self, digest: str, now: float, among: Collection[str] | None = None) -> str:
        """Where it would best live beside its homes; "" if it lives everywhere.

        Where least is expected, then where fewest live, then by a hash, so that edges choose alike.
        """
        homes = self._homes.get(digest, ())
        free = [name for name in (self._open() if among is None else among) if name not in homes]
        if not free:
            return ""
        return self._best(digest, free, self._loads(free, now))[0]

    def wanted(self, digest: str, now: float) -> int:
        """How many homes its load asks for."""
        return self._wanted(self.load(digest, now), self._all(now))

    def plan(self, now: float) -> list[Move]:
        """What to change: homes for those that are hot, half as many again at a time, fewer for those that
        have cooled, then moves that make loads even: one where nothing else is to be done, in fleets of many
        some with every look. Looks at adapters with some load or more than one home, not at all others.
        """
        moves = self._grown_and_shrunk(now)
        pairs = max(len(self._count) // MANY, 0 if moves else 1)
        return [*moves, *self._evened(now, pairs, {move.digest for move in moves})]

    # -- inside

    def _change(self, digest: str | None, by: int, now: float) -> None:
        """Of its load, and of what its homes can expect."""
        gauge = self._base if digest is None else self._gauges.get(digest)
        if gauge is not None:
            gauge.change(by, now)
            homes = self._homes.get(digest or "", ())
            for name in homes:
                self._expected[name].change(by / len(homes), now)

    def _weigh(self, digest: str, by: int) -> None:
        """Take its load from its homes (-1) before they change, and give it to them (1) afterwards."""
        gauge, homes = self._gauges.get(digest), self._homes.get(digest, ())
        if gauge is not None:
            for name in homes:
                self._expected[name].add(gauge, by / len(homes))

    def _all(self, now: float) -> float:
        return self._base.look(now) + sum(gauge.look(now) for gauge in self._gauges.values())

    def _wanted(self, load: float, total: float) -> int:
        """Homes for twice its share of all load, but no more than it has requests at a time."""
        replicas = len(self._count) - sum(name in self._count for name in self.closing)
        most = min(replicas, max(1, round(load)))
        share = min(1.0, load / total) if total > 0 else 0.0
        return max(1, min(most, math.ceil(share * HEADROOM * replicas)))

    def _open(self) -> list[str]:
        """Replicas that may become somebody's home."""
        return [name for name in self._count if name not in self.closing]

    def _loads(self, among: Collection[str], now: float) -> dict[str, float]:
        """What each can expect; sums of shares are a little off, which must not decide."""
        return {name: round(self._expected[name].seen(now), ALIKE) for name in among}

    def _best(
        self, digest: str, free: Collection[str], expected: Mapping[str, float], most: int = 1
    ) -> list[str]:
        """As `new_home` says; a hash is made only of those that are alike otherwise."""
        rank = {name: (expected[name], self._count[name]) for name in free}
        last = min(rank.values()) if most == 1 else nsmallest(most, rank.values())[-1]
        alike = [name for name in free if rank[name] == last]
        before = [name for name in free if rank[name] < last]
        return [*before, *nsmallest(most - len(before), alike, key=lambda name: _rank(digest, name))]

    def _grown_and_shrunk(self, now: float) -> list[Move]:
        """The first of them, as many as a look makes."""
        total, moves = self._all(now), list[Move]()
        most, expected = max(MOVES, len(self._count) // EIGHT), dict[str, float]()
        for digest in tuple(self._gauges):
            gauge, homes = self._gauges[digest], self._homes.get(digest, ())
            load = gauge.look(now)
            if not gauge.count and load < WARM and len(homes) <= 1:
                self._weigh(digest, -1)
                del self._gauges[digest]
            elif len(moves) == most:
                continue  # the cold ones behind are forgotten all the same
            elif 0 < len(homes) < self._wanted(load, total):
                expected = expected or self._loads(self._count, now)
                more = min(self._wanted(load, total) - len(homes), max(1, len(homes) // 2), most - len(moves))
                free = [name for name in self._open() if name not in homes]
                for name in self._best(digest, free, expected, more):
                    moves.append(Move(digest, to=name))
                    expected[name] += load / (len(homes) + more)  # or the next would go there, too
            elif len(homes) > self._wanted(load * COOL, total):
                away = max(homes, key=lambda name: (name in self.closing, self.held[name]))
                moves.append(Move(digest, away=away))
        return moves

    def _evened(self, now: float, pairs: int, but: Collection[str]) -> list[Move]:
        """From those that expect most to those that expect least, an adapter for each pair that is uneven."""
        expected = self._loads(self._open(), now)
        ranked = sorted(expected, key=lambda name: expected[name])
        pairs = min(pairs, len(ranked) // 2)
        least = max(1.0, UNEVEN * sum(expected.values()) / max(1, len(ranked)))
        both = zip(reversed(ranked), ranked, strict=True)
        gaps = {full: (expected[full] - expected[idle], idle) for full, idle in islice(both, pairs)}
        gaps = {name: gap for name, gap in gaps.items() if gap[0] > least}
        best: dict[str, tuple[float, str]] = {}
        for digest, gauge in self._gauges.items() if gaps else ():
            homes = self._homes.get(digest, ())
            if len(homes) == 1 and homes[0] in gaps and digest not in but:
                load, home = gauge.look(now), homes[0]
                if WARM < load <= gaps[home][0] / 2:
                    best[home] = max(best.get(home, (0.0, "")), (load, digest))
        return [Move(digest, to=gaps[home][1], away=home) for home, (_, digest) in best.items()]


def _rank(digest: str, replica: str) -> bytes:
    """The order in which an adapter would choose among replicas that are alike."""
    return hashlib.sha256(f"{digest} {replica}".encode()).digest()
