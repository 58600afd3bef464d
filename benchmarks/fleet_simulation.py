"""`python -m benchmarks.fleet_simulation`: 2,000 adapters over 4 replicas, by who answers what.

A discrete-event simulation: requests, steps and loads are events, no engine runs. Where requests go is
decided by `router.fleet.placement` itself, by round robin, and by consistent hashing; each policy gets the
same clients. A replica batches up to ROWS requests; a step takes BASE + ROW for each of them + ADAPTER for
each adapter among them (fitted to this engine's own measurements, see SOURCES). An adapter that is not in
a replica's memory is loaded in LOAD while the request waits, and the least recently used one makes room.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import heapq
import itertools
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median, quantiles
from typing import Any, Protocol

from benchmarks import report
from router.fleet.placement import Placement

ADAPTERS, REPLICAS = 2000, 4
ROWS, SLOTS, MEMORY = (
    32,
    32,
    400,
)  # requests of a step, adapters on the device, adapters in memory: a replica's
TOKENS = 64
BASE, ROW, ADAPTER = 0.0115, 0.00047, 0.00060  # seconds
LOAD = 0.051  # seconds from a folder or the store to memory, while others step
SOURCES = (
    "steps: 16 rows in 19 ms, 24 ms with 8 adapters among them (README: 838 and 668 tokens a second); loads: "
    "51 ms (benchmarks/results/many-adapters.md); a CPU's memory is its device, so bringing an adapter from "
    "one to the other costs nothing here: on a GPU what is not on the device costs an upload"
)


@dataclass(eq=False, slots=True)
class Request:
    """One, from its arrival on."""

    adapter: str
    came: float
    at: str = ""
    left: int = TOKENS
    first: float = 0.0


@dataclass(eq=False, slots=True)
class Machine:
    """A replica: who runs and waits, what is in memory, what on the device."""

    name: str
    speed: float = 1.0
    running: list[Request] = field(default_factory=list)
    waiting: deque[Request] = field(default_factory=deque)
    memory: OrderedDict[str, None] = field(default_factory=OrderedDict)
    device: OrderedDict[str, None] = field(default_factory=OrderedDict)
    steps: bool = False
    tokens: int = 0
    together: Counter[int] = field(default_factory=Counter)  # steps by adapters in them

    @property
    def held(self) -> int:
        """Requests here."""
        return len(self.running) + len(self.waiting)


class Policy(Protocol):
    """Who answers a request."""

    name: str

    def choose(self, request: Request, machines: dict[str, Machine], now: float) -> str:
        """The machine, which has the adapter in memory or will load it."""
        ...

    def ended(self, request: Request, now: float) -> None:
        """A request was answered."""
        ...

    def look(self, machines: dict[str, Machine], now: float) -> None:
        """Once a second."""
        ...


class RoundRobin:
    """One after the other, whatever is asked."""

    name = "round robin"

    def __init__(self) -> None:
        self._turn = itertools.count()

    def choose(self, request: Request, machines: dict[str, Machine], now: float) -> str:
        """The next."""
        return str(next(self._turn) % len(machines))

    def ended(self, request: Request, now: float) -> None:
        """Nothing is kept."""

    def look(self, machines: dict[str, Machine], now: float) -> None:
        """Nothing moves."""


class ConsistentHash(RoundRobin):
    """The next point of a ring, 128 of them a machine; with `bound` the first whose load is at most that many
    times the mean (consistent hashing with bounded loads, Mirrokni et al. 2018).
    """

    def __init__(self, bound: float = 0.0) -> None:
        self.name = "consistent hashing" + (f", bounded at {bound:g}" if bound else "")
        self._bound = bound
        self._ring = sorted((_point(f"{i} {j}"), str(i)) for i in range(REPLICAS) for j in range(128))

    def choose(self, request: Request, machines: dict[str, Machine], now: float) -> str:
        """Clockwise from the adapter's own point."""
        at = bisect.bisect(self._ring, (_point(request.adapter), ""))
        most = self._bound * (1 + sum(m.held for m in machines.values())) / len(machines)
        for i in range(len(self._ring)):
            name = self._ring[(at + i) % len(self._ring)][1]
            if not self._bound or machines[name].held < most:
                return name
        return name


class Ours(RoundRobin):
    """`router.fleet.placement`, used as `router.fleet.engine` uses it."""

    name = "homes by load, two choices"

    def __init__(self, seed: int) -> None:
        self._placement = Placement(random.Random(seed))
        for i in range(REPLICAS):
            self._placement.join(str(i))

    def choose(self, request: Request, machines: dict[str, Machine], now: float) -> str:
        """The less busy of two homes; an adapter that has none gets one."""
        placement = self._placement
        for name in placement.homes(request.adapter):
            if request.adapter not in machines[name].memory:  # it made room for others since
                placement.unsettle(request.adapter, name)
        if not placement.homes(request.adapter):
            placement.settle(request.adapter, placement.new_home(request.adapter, now))
        name = placement.choose(placement.homes(request.adapter))
        placement.begin(request.adapter, name, now)
        return name

    def ended(self, request: Request, now: float) -> None:
        """Its load is over."""
        self._placement.end(request.adapter, request.at, now)

    def look(self, machines: dict[str, Machine], now: float) -> None:
        """Adapters move as their load does; a new home has loaded it before requests come."""
        for move in self._placement.plan(now):
            if move.to:
                self._placement.settle(move.digest, move.to)
                _keep(machines[move.to].memory, move.digest, MEMORY)
            if move.away:
                self._placement.unsettle(move.digest, move.away)


class Simulation:
    """One policy under one stream of requests."""

    def __init__(self, policy: Policy, seed: int, exponent: float, slow: str = "") -> None:
        self._policy, self._draw = policy, random.Random(seed)
        names = [str(i) for i in range(REPLICAS)]
        self.machines = {name: Machine(name, 0.1 if name == slow else 1.0) for name in names}
        weights = [rank**-exponent for rank in range(1, ADAPTERS + 1)]
        self._adapters = [f"adapter-{i}" for i in range(ADAPTERS)]
        self._draw.shuffle(self._adapters)
        self._weights = list(itertools.accumulate(weights))
        self._events: list[tuple[float, int, str, Any]] = []
        self._ties = itertools.count()
        self.in_memory = self.on_device = self.asked = 0
        self.firsts: list[float] = []
        self.measured_from = 0.0

    def run(self, clients: int, warm: float, seconds: float) -> None:
        """A closed loop: each client asks again when it was answered."""
        self.measured_from = warm
        for _ in range(clients):
            self._at(self._draw.random() * 0.5, "ask", None)
        for second in range(1, int(warm + seconds)):
            self._at(float(second), "look", None)
        while self._events and self._events[0][0] < warm + seconds:
            now, _, kind, what = heapq.heappop(self._events)
            if kind == "ask":
                self._ask(now)
            elif kind == "look":
                self._policy.look(self.machines, now)
            elif kind == "loaded":
                self._queue(what, now)
            else:
                self._step(what, now)

    def _at(self, when: float, kind: str, what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._ties), kind, what))

    def _ask(self, now: float) -> None:
        (adapter,) = self._draw.choices(self._adapters, cum_weights=self._weights)
        request = Request(adapter, now)
        request.at = self._policy.choose(request, self.machines, now)
        machine = self.machines[request.at]
        if now >= self.measured_from:
            self.asked += 1
            self.in_memory += adapter in machine.memory
            self.on_device += adapter in machine.device
        if adapter in machine.memory:
            machine.memory.move_to_end(adapter)
            self._queue(request, now)
        else:
            _keep(machine.memory, adapter, MEMORY)
            self._at(now + LOAD, "loaded", request)

    def _queue(self, request: Request, now: float) -> None:
        machine = self.machines[request.at]
        machine.waiting.append(request)
        if not machine.steps:
            machine.steps = True
            self._at(now, "step", machine)

    def _step(self, machine: Machine, now: float) -> None:
        """Admit, compute, answer; the next begins when this one has ended."""
        for request in [r for r in machine.running if r.left == 0]:
            machine.running.remove(request)
            self._policy.ended(request, now)
            self._at(now, "ask", None)
        while machine.waiting and len(machine.running) < ROWS:
            machine.running.append(machine.waiting.popleft())
        if not machine.running:
            machine.steps = False
            return
        adapters = {request.adapter for request in machine.running}
        for adapter in adapters:
            _keep(machine.device, adapter, SLOTS)
        took = (BASE + ROW * len(machine.running) + ADAPTER * len(adapters)) / machine.speed
        for request in machine.running:
            request.left -= 1
            if not request.first:
                request.first = now + took
                if request.came >= self.measured_from:
                    self.firsts.append(request.first - request.came)
        if now >= self.measured_from:
            machine.tokens += len(machine.running)
            machine.together[len(adapters)] += 1
        self._at(now + took, "step", machine)


def _keep(kept: OrderedDict[str, None], name: str, most: int) -> None:
    """The most recently used `most`."""
    kept[name] = None
    kept.move_to_end(name)
    while len(kept) > most:
        kept.popitem(last=False)


def _point(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def policies(seed: int) -> Iterator[Policy]:
    """All that are compared."""
    yield RoundRobin()
    yield ConsistentHash()
    yield ConsistentHash(1.25)
    yield Ours(seed)


def compare(
    exponent: float, clients: int, warm: float, seconds: float, seeds: Sequence[int], slow: str = ""
) -> list[dict[str, Any]]:
    """A row for each policy, medians over seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for policy in policies(seed):
            simulation = Simulation(policy, seed, exponent, slow)
            simulation.run(clients, warm, seconds)
            found.setdefault(policy.name, []).append(outcome(simulation, seconds))
    return [
        {"policy": name} | {key: median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    ]


def outcome(simulation: Simulation, seconds: float) -> dict[str, float]:
    """What is told of one run."""
    machines = simulation.machines.values()
    tokens = [machine.tokens for machine in machines]
    steps = sum(sum(machine.together.values()) for machine in machines)
    together = sum(count * times for machine in machines for count, times in machine.together.items())
    cuts = quantiles(simulation.firsts, n=100)
    return {
        "tokens/s": sum(tokens) / seconds,
        "in memory": simulation.in_memory / simulation.asked,
        "on the device": simulation.on_device / simulation.asked,
        "adapters a step": together / steps,
        "first token p50 ms": 1000 * cuts[49],
        "p99 ms": 1000 * cuts[98],
        "busiest / mean": max(tokens) / mean(tokens),
    }


def main() -> None:
    """Print the tables; `--write` keeps them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=160)
    parser.add_argument("--warm", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    said = parser.parse_args()
    seeds = range(1, said.seeds + 1)
    times = (said.clients, said.warm, said.seconds, seeds)
    rows = compare(1.0, *times)
    tables = {
        "Steeper (exponent 1.3)": compare(1.3, *times),
        "One replica ten times slower": compare(1.0, *times, slow="2"),
    }
    print(report.table(rows))
    for title, more in tables.items():
        print(f"\n{title}\n\n{report.table(more)}")
    if said.write:
        workload = (
            f"SIMULATED, nothing was measured: {ADAPTERS} adapters by Zipf's law (exponent 1) over "
            f"{REPLICAS} replicas of {ROWS} rows, {SLOTS} slots and memory for {MEMORY} adapters each; "
            f"{said.clients} clients in a closed loop, answers of {TOKENS} tokens; {said.seconds:g} s after "
            f"{said.warm:g} s of warm-up, medians of {said.seeds} seeds."
        )
        notes = [SOURCES, "prompts cost nothing here, and neither does the way between edge and replica"]
        print(report.write("fleet-simulation", workload, rows, notes, tables=tables))


if __name__ == "__main__":
    main()
