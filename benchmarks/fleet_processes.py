"""`python -m benchmarks.fleet_processes`: 2,000 adapters over 4 replicas, by processes, beside the
simulation.

What `benchmarks.fleet_simulation` computes is done here: four processes with a fake engine of a fixed step
time and a fixed time to load, an edge that reaches them as `serve --replicas` does (without Ray), and
clients in the edge's process. Ours is one fleet of four; round robin and consistent hashing choose among
four fleets of one. The simulation is given the same times, so the two should say the same.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Protocol

from benchmarks import report
from benchmarks.fake_replicas import Kind, address_of, link_to, of_size, replicas
from benchmarks.fleet_model import Costs, Machine, Policy, Request, Shape, Simulation, outcome
from benchmarks.fleet_policies import Ours, policies
from router.engine.base import AdapterArtifact, Delta, Finished, Job, Prompt
from router.engine.fake import FakeEngine
from router.errors import ResourceExhausted
from router.replicas.engine import FleetEngine
from router.replicas.placement import Placement
from router.types import SamplingParams

SIZE = 64  # bytes of an adapter, which nobody computes with
PROMPT = "one two three"


class Counted(Placement):
    """Where requests went."""

    went: Counter[str]

    def begin(self, digest: str | None, replica: str, now: float) -> None:
        """One more there."""
        self.went[replica] += 1
        super().begin(digest, replica, now)


class AdapterCache:
    """Adapters of one fleet, as a registry keeps them: what was asked for least recently makes room."""

    def __init__(self, engine: FleetEngine, placement: Placement) -> None:
        self.engine, self._placement = engine, placement
        self._kept: OrderedDict[str, AdapterArtifact] = OrderedDict()
        self._used: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Lock] = {}

    def has(self, name: str) -> bool:
        """Whether a request for it waits for nothing."""
        kept = self._kept.get(name)
        return kept is not None and bool(self._placement.homes(kept.digest))

    async def hold(self, name: str) -> str:
        """Its digest; it is loaded until it is let go."""
        self._used[name] += 1
        async with self._turns.setdefault(name, asyncio.Lock()):
            if name not in self._kept:
                made = of_size(name, SIZE)
                while True:
                    try:
                        await self.engine.load(made)
                        break
                    except ResourceExhausted:
                        await self._make_room()
                self._kept[name] = made
        self._kept.move_to_end(name)
        return self._kept[name].digest

    def let_go(self, name: str) -> None:
        """Nobody is asking for it, if nobody else is."""
        self._used[name] -= 1

    async def _make_room(self) -> None:
        idle = next((name for name in self._kept if not self._used[name]), None)
        if idle is None:  # all are in use: one is soon let go
            await asyncio.sleep(0.01)
            return
        await self.engine.unload(self._kept.pop(idle).digest)


class Way(Protocol):
    """A policy with fleets behind it."""

    def choose(self, name: str) -> tuple[AdapterCache, str]:
        """Whose adapter it is to be, and the replica, where the policy chooses one."""
        ...

    def ended(self, at: str) -> None:
        """An answer has come."""
        ...


class OneFleet:
    """Ours: the fleet chooses."""

    def __init__(self, cache: AdapterCache) -> None:
        self._keeper = cache

    def choose(self, name: str) -> tuple[AdapterCache, str]:
        """Always the same."""
        return self._keeper, ""

    def ended(self, at: str) -> None:
        """The fleet counts itself."""


class Fleets:
    """Another policy chooses among fleets of one replica each."""

    def __init__(self, policy: Policy, keepers: dict[str, AdapterCache]) -> None:
        self._policy, self._keepers = policy, keepers
        self._machines = {name: Machine(name) for name in keepers}

    def choose(self, name: str) -> tuple[AdapterCache, str]:
        """As the policy says."""
        at = self._policy.choose(Request(name, 0, 0.0), self._machines, time.monotonic())
        self._machines[at].held += 1
        return self._keepers[at], at

    def ended(self, at: str) -> None:
        """One less there."""
        self._machines[at].held -= 1


@dataclass
class Seen:
    """What clients saw while it counted."""

    tokens: int = 0
    at_hand: int = 0
    asked: int = 0
    firsts: list[float] = field(default_factory=list)

    def add(self, more: Seen) -> None:
        """One more request."""
        self.tokens, self.at_hand = self.tokens + more.tokens, self.at_hand + more.at_hand
        self.asked, self.firsts = self.asked + more.asked, self.firsts + more.firsts


def fleet(addresses: dict[str, str], shape: Shape, seed: int) -> tuple[FleetEngine, AdapterCache, Counted]:
    """One over these replicas, with the memory that the shape gives each."""
    placement = Counted(random.Random(seed))
    placement.went = Counter()
    engine = FleetEngine(
        [link_to(name, address) for name, address in addresses.items()],
        FakeEngine,
        max_running=shape.rows,
        max_queue=shape.queue,
        host_bytes=shape.memory * SIZE,
        placement=placement,
    )
    return engine, AdapterCache(engine, placement), placement


async def ask(way: Way, name: str, answer: int) -> Seen:
    """One request."""
    began, first, count = time.perf_counter(), 0.0, 0
    cache, at = way.choose(name)
    at_hand = cache.has(name)
    digest = await cache.hold(name)
    try:
        params = SamplingParams(max_tokens=answer, min_tokens=2 * answer)
        job = Job("r", cache.engine.encode(Prompt(raw=PROMPT)), params, digest)
        async for event in cache.engine.submit(job):
            if isinstance(event, Delta):
                first = first or time.perf_counter() - began
                count += event.tokens
            elif isinstance(event, Finished) and event.reason.value != "length":
                raise SystemExit(f"an answer ended with {event.reason}")
    finally:
        cache.let_go(name)
        way.ended(at)
    return Seen(count, int(at_hand), 1, [first])


async def closed_loop(way: Way, shape: Shape, clients: int, warm: float, seconds: float, seed: int) -> Seen:
    """Clients that ask one after the other, by Zipf's law; what ends after the warm-up counts."""
    draw, seen = random.Random(seed), Seen()
    names = [f"adapter-{i}" for i in range(shape.adapters)]
    weights = list(itertools.accumulate(i**-shape.exponent for i in range(1, shape.adapters + 1)))
    began = time.perf_counter()
    counts_from, end = began + warm, began + warm + seconds

    async def client() -> None:
        await asyncio.sleep(draw.random() * 0.5)
        while time.perf_counter() < end:
            (name,) = draw.choices(names, cum_weights=weights)
            one = await ask(way, name, shape.answer)
            if counts_from <= time.perf_counter() < end:
                seen.add(one)

    await asyncio.gather(*(client() for _ in range(clients)))
    return seen


async def measure(policy: Policy, shape: Shape, kind: Kind, args: argparse.Namespace) -> dict[str, float]:
    """One policy, with processes of its own."""
    with replicas(shape.replicas, kind) as processes:
        addresses = {str(i): address_of(process) for i, process in enumerate(processes)}
        if isinstance(policy, Ours):
            made = [fleet(addresses, shape, args.seed)]
            way: Way = OneFleet(made[0][1])
        else:
            made = [fleet({name: address}, shape, args.seed) for name, address in addresses.items()]
            way = Fleets(policy, {name: cache for name, (_, cache, _) in zip(addresses, made, strict=True)})
        for engine, *_ in made:
            await asyncio.to_thread(engine.start)
        began, cpu = time.perf_counter(), time.process_time()
        seen = await closed_loop(way, shape, args.clients, args.warm, args.seconds, args.seed)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
        for engine, *_ in made:
            await asyncio.to_thread(engine.close)
    went = [count for *_, placement in made for count in placement.went.values()]
    went += [0] * (shape.replicas - len(went))
    return {
        "tokens/s": seen.tokens / args.seconds,
        "in memory": seen.at_hand / max(1, seen.asked),
        "first ms": 1e3 * sorted(seen.firsts)[len(seen.firsts) // 2],
        "busiest / mean": max(went) / mean(went),
        "edge and clients, cores": cpu,
    }


def simulated(policy: Policy, shape: Shape, kind: Kind, args: argparse.Namespace) -> dict[str, float]:
    """The same without processes."""
    costs = Costs(kind.step_seconds, kind.row_seconds, kind.adapter_seconds, 0.0, kind.load_seconds)
    simulation = Simulation([policy], shape, costs, args.seed)
    simulation.run(args.clients, args.warm, args.seconds)
    found = outcome(simulation, args.seconds)
    return found | {"first ms": found["first token p50 ms"]}


async def compare(shape: Shape, kind: Kind, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each policy: what processes did, and what the simulation says."""
    rows: list[dict[str, Any]] = []
    for name, policy in policies(args.seed, shape).items():
        real = await measure(policy, shape, kind, args)
        expected = simulated(policies(args.seed, shape)[name], shape, kind, args)
        row: dict[str, Any] = {"policy": name}
        for what, value in real.items():
            row |= {what: value} | ({f"{what}, simulated": expected[what]} if what in expected else {})
        rows.append(row)
        print(row, flush=True)
    return rows


async def main(args: argparse.Namespace) -> None:
    """All policies, one after the other, with steps as they were measured and with steps that are all
    alike."""
    shape, costs = (
        Shape(adapters=args.adapters, memory=args.memory, prompt=1, answer=args.tokens),
        Costs.read(),
    )
    measured = Kind(costs.base, costs.row, costs.adapter, costs.load, shape.rows, shape.queue)
    rows = await compare(shape, measured, args)
    fixed = await compare(shape, Kind(args.step, 0.0, 0.0, costs.load, shape.rows, shape.queue), args)
    title = f"Steps that all take {1e3 * args.step:g} ms"
    print(report.table(rows), title, report.table(fixed), sep="\n\n")
    if args.write:
        workload = (
            f"{args.adapters} adapters by Zipf's law over {shape.replicas} processes of {shape.rows} rows "
            f"and memory for {args.memory} adapters (fake engines whose steps and loads take what was "
            f"measured: {costs.source}); {args.clients} clients in a closed loop, answers of {args.tokens} "
            f"tokens; {args.seconds:g} s after {args.warm:g} s of warm-up."
        )
        print(report.write("fleet-processes", workload, rows, notes([*rows, *fixed]), tables={title: fixed}))


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the table is worth."""
    off = max(abs(row["tokens/s, simulated"] / row["tokens/s"] - 1) for row in rows)
    return [
        f"tokens a second of the simulation are off by up to {off:.2f}: a process's step takes its time and "
        "what it computes besides, which the simulation leaves out",
        f"usable cores: {len(os.sched_getaffinity(0))}, shared by the edge, its clients and all replicas",
        "`in memory`: the adapter was there when the request came",
        "where all steps are alike, many adapters in one cost nothing, and all rows are busy: then a policy "
        "can only lose by waiting for loads and by leaving a replica without work",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--memory", type=int, default=400, help="adapters that a replica has place for")
    parser.add_argument("--clients", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--step", type=float, default=0.02, help="seconds, where all steps are alike")
    parser.add_argument("--warm", type=float, default=14.0)
    parser.add_argument("--seconds", type=float, default=13.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    asyncio.run(main(parser.parse_args()))
