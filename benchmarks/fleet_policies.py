"""Who answers a request: the ways that are compared, as `benchmarks.fleet_model` asks them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping

from benchmarks.fleet_model import Machine, Policy, Request, Shape
from router.replicas.placement import Placement

POINTS = 128  # of a machine on the ring
BOUND = 1.25  # times the mean load


class RoundRobin:
    """One after the other, whatever is asked."""

    name = "round robin"

    def __init__(self) -> None:
        self._turn = itertools.count()

    def choose(self, request: Request, machines: Mapping[str, Machine], now: float) -> str:
        """The next."""
        names = list(machines)
        return names[next(self._turn) % len(names)]

    def ended(self, request: Request, now: float) -> None:
        """Nothing is kept."""

    def look(self, machines: Mapping[str, Machine], now: float) -> list[tuple[str, str]]:
        """Nothing moves."""
        return []

    def went(self, name: str) -> None:
        """Its turns go to others."""

    def came(self, name: str) -> None:
        """It has its turns again."""


class Ring:
    """POINTS for each replica on a circle (consistent hashing, Karger et al. 1997)."""

    def __init__(self, replicas: int) -> None:
        self._points = sorted((point(f"{i} {j}"), str(i)) for i in range(replicas) for j in range(POINTS))

    def after(self, adapter: str) -> Iterator[str]:
        """Clockwise from the adapter's own point; a replica comes several times."""
        at = bisect.bisect(self._points, (point(adapter), ""))
        return (self._points[(at + i) % len(self._points)][1] for i in range(len(self._points)))


class ConsistentHash(RoundRobin):
    """The next point of the ring; with `bound` the first whose load is at most that many times the mean
    (consistent hashing with bounded loads, Mirrokni et al. 2018).
    """

    def __init__(self, ring: Ring, bound: float = 0.0) -> None:
        super().__init__()
        self.name = "consistent hashing" + (f", bounded at {bound:g}" if bound else "")
        self._ring, self._bound = ring, bound

    def choose(self, request: Request, machines: Mapping[str, Machine], now: float) -> str:
        """The adapter's own machine, or the next that is up and has room."""
        there = (name for name in self._ring.after(request.adapter) if name in machines)
        if not self._bound:
            return next(there)
        most = self._bound * (1 + sum(machine.held for machine in machines.values())) / len(machines)
        return next(name for name in there if machines[name].held < most)


class Ours(RoundRobin):
    """`router.replicas.placement`, used as `router.replicas.engine` uses it.

    One edge of several sees its own requests alone. With `homes`, replicas say what they have in memory,
    and an adapter is brought where it is already, for another edge; with `loads`, they say each second how
    many requests they have of all edges.
    """

    name = "homes by load, two choices"

    def __init__(self, seed: int, shape: Shape, loads: bool = False, homes: bool = False) -> None:
        super().__init__()
        self._loads, self._homes, self._most = loads, homes, shape.rows + shape.queue
        self.placement = Placement(random.Random(seed), rows=shape.rows)
        for i in range(shape.replicas):
            self.placement.join(str(i))

    def choose(self, request: Request, machines: Mapping[str, Machine], now: float) -> str:
        """The less busy of two homes with room; where there is none, the adapter gets one more home."""
        placement, adapter = self.placement, request.adapter
        for name in placement.homes(adapter):
            if adapter not in machines[name].memory:  # it made room for others since
                placement.unsettle(adapter, name)
        there = [name for name in placement.homes(adapter) if placement.held[name] < self._most]
        if not there:
            room = [name for name in machines if placement.held[name] < self._most] or list(machines)
            if self._homes:
                mine = placement.homes(adapter)
                room = [n for n in room if adapter in machines[n].memory and n not in mine] or room
            there = [placement.new_home(adapter, now, room)]
            if there == [""]:
                there = list(placement.homes(adapter))
            else:
                placement.settle(adapter, there[0])
        elif more := placement.overflow(there):
            placement.settle(adapter, more)
            there.append(more)
        name = placement.choose(there)
        placement.begin(adapter, name, now)
        return name

    def ended(self, request: Request, now: float) -> None:
        """Its load is over."""
        self.placement.end(request.adapter, request.at, now)

    def look(self, machines: Mapping[str, Machine], now: float) -> list[tuple[str, str]]:
        """Adapters move as their load does."""
        if self._loads:
            for name, machine in machines.items():
                self.placement.held[name] = machine.held
        brought = []
        for move in self.placement.plan(now):
            if move.to:
                self.placement.settle(move.digest, move.to)
                brought.append((move.digest, move.to))
            if move.away:
                self.placement.unsettle(move.digest, move.away)
        return brought

    def went(self, name: str) -> None:
        """It is nobody's home any more."""
        self.placement.leave(name)

    def came(self, name: str) -> None:
        """It is a home again, for those that will be brought."""
        self.placement.join(name)


def point(text: str) -> int:
    """A place on the circle."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def policies(seed: int, shape: Shape) -> dict[str, Policy]:
    """All that are compared, by name."""
    ring = Ring(shape.replicas)
    made = RoundRobin(), ConsistentHash(ring), ConsistentHash(ring, BOUND), Ours(seed, shape)
    return {policy.name: policy for policy in made}
