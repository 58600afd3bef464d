"""Who answers a request: the ways that are compared, as `benchmarks.fleet_model` asks them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from benchmarks.fleet_model import Machine, Policy, Request, Shape
from router.replicas.engine import choose

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


class View(NamedTuple):
    """A machine as its edge sees it."""

    name: str
    held: int
    adapters: Collection[str]


class Ours(RoundRobin):
    """`choose` of `router.replicas.engine`; an edge counts its own requests."""

    name = "score: requests, and 8 for a load"

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._most = shape.rows + shape.queue
        self._held: Counter[str] = Counter()

    def choose(self, request: Request, machines: Mapping[str, Machine], now: float) -> str:
        """The least score of those with room."""
        views = [View(name, self._held[name], machine.memory) for name, machine in machines.items()]
        room = [view for view in views if view.held < self._most] or views
        name = choose(room, request.adapter).name
        self._held[name] += 1
        return name

    def ended(self, request: Request, now: float) -> None:
        """Its load is over."""
        self._held[request.at] -= 1


def point(text: str) -> int:
    """A place on the circle."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def policies(shape: Shape) -> dict[str, Policy]:
    """All that are compared, by name."""
    ring = Ring(shape.replicas)
    made = RoundRobin(), ConsistentHash(ring), ConsistentHash(ring, BOUND), Ours(shape)
    return {policy.name: policy for policy in made}
