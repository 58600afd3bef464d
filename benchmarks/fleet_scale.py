"""`python -m benchmarks.fleet_scale`: from 4 replicas and 400 adapters to 1,000 and 100,000, simulated.

The fleet of benchmarks/fleet_model.py, with as many edges as the calls need by what `benchmarks.edge_calls`
has measured. Each edge has its own `router.replicas.placement` and sees its own requests; replicas tell it
how many they have of all. Popularity drifts, replicas are lost and come back empty. Then `Placement` itself
is timed at each size: what an edge pays for knowing so many.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import report
from benchmarks.edge_calls import EDGE_COSTS
from benchmarks.fleet_model import Costs, Policy, Shape, Simulation, outcome
from benchmarks.fleet_policies import ConsistentHash, Ours, Ring, RoundRobin
from router.replicas.placement import Placement

SIZES = ((4, 400), (32, 5_000), (250, 30_000), (1_000, 100_000))  # replicas, adapters
MEMORY = 160  # adapters that a replica has place for
CLIENTS = 40  # for each replica
DRIFT = 0.1  # adapters a second that change their place in the order of popularity
LIFE = 10_000.0  # seconds after which a replica is lost, in the mean
SPREAD, BEGIN = 0.5, 10.0  # of answers' lengths, and seconds in which all clients begin: or all keep step
MOST_EDGES = 4  # that are simulated
BUSY = 0.7  # of an edge's core, at most
TIMES = 20  # that `Placement` is asked for what is timed


def edges_for(calls: float, tokens: float, ms_a_call: float, us_a_token: float) -> int:
    """How many a fleet needs that streams so much a second."""
    return max(1, math.ceil((calls * ms_a_call / 1e3 + tokens * us_a_token / 1e6) / BUSY))


def simulated(
    edges: Sequence[Policy], shape: Shape, costs: Costs, warm: float, seconds: float, calm: bool = False
) -> tuple[dict[str, float], Simulation]:
    """One run; `calm`: nothing drifts, nobody is lost."""
    simulation = Simulation(edges, shape, costs, 1, drift=0.0 if calm else DRIFT)
    loss = 0.0 if calm else shape.replicas / LIFE
    simulation.run(CLIENTS * shape.replicas, warm, seconds, loss, begin=BEGIN)
    return outcome(simulation, seconds), simulation


def ideal(shape: Shape, costs: Costs, warm: float, seconds: float) -> float:
    """Tokens a second if every adapter were in every memory, and requests dealt evenly."""
    everything = replace(shape, memory=shape.adapters)
    found, _ = simulated(
        [RoundRobin()], everything, replace(costs, load=0.0, held=0.0), warm, seconds, calm=True
    )
    return found["tokens/s"]


def ways(shape: Shape, edges: int) -> dict[str, list[Policy]]:
    """What is compared at each size."""
    ring = Ring(shape.replicas)
    made: dict[str, list[Policy]] = {
        "round robin": [RoundRobin() for _ in range(edges)],
        "consistent hashing": [ConsistentHash(ring) for _ in range(edges)],
        "ours, one edge": [Ours(1, shape)],
    }
    if edges == 1:
        return made
    return made | {
        "ours, edges know their own requests": [Ours(i, shape) for i in range(edges)],
        "ours, and bring where others have it": [Ours(i, shape, homes=True) for i in range(edges)],
        "ours, and know others' requests": [Ours(i, shape, homes=True, loads=True) for i in range(edges)],
    }


def size(replicas: int, adapters: int, costs: Costs, warm: float, seconds: float) -> list[dict[str, Any]]:
    """The lines of one size."""
    shape = Shape(adapters=adapters, replicas=replicas, memory=MEMORY, spread=SPREAD)
    most = ideal(shape, costs, warm, seconds)
    core = json.loads(EDGE_COSTS.read_text())["a core"]
    a_call = core["edge ms a call"], core["edge us a streamed token"]
    edges = edges_for(most / shape.answer, most, *a_call)
    rows = []
    for name, policies in ways(shape, min(edges, MOST_EDGES)).items():
        began = time.perf_counter()
        found, simulation = simulated(policies, shape, costs, warm, seconds)
        rows.append(
            {
                "replicas": replicas,
                "adapters": adapters,
                "who chooses": name,
                "edges": len(policies),
                "in memory": found["in memory"],
                "tokens/s": found["tokens/s"],
                "of the ideal": found["tokens/s"] / most,
                "busiest / mean": found["busiest / mean"],
                "first token p50 ms": found["first token p50 ms"],
                "answers lost": simulation.lost,
                "sent elsewhere": simulation.elsewhere,
                "edges needed": edges,
            }
        )
        print(f"{time.perf_counter() - began:.0f} s: {rows[-1]}", flush=True)
    return rows


def timed(what: Callable[[int], object]) -> float:
    """Milliseconds, the median of TIMES."""
    times = []
    for number in range(TIMES):
        began = time.perf_counter()
        what(number)
        times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[TIMES // 2]


def placement_costs(replicas: int, adapters: int) -> dict[str, Any]:
    """What one edge pays to know all: every adapter has a home, CLIENTS requests a replica are running."""
    draw = random.Random(1)
    tracemalloc.start()
    placement = Placement(draw)
    for i in range(replicas):
        placement.join(str(i))
    for i in range(adapters):
        placement.settle(f"adapter-{i}", str(i % replicas), 1)
    weights = list(itertools.accumulate(1 / i for i in range(1, adapters + 1)))
    asked = [f"adapter-{i}" for i in draw.choices(range(adapters), cum_weights=weights, k=CLIENTS * replicas)]
    for adapter in asked:
        placement.begin(adapter, placement.choose(placement.homes(adapter)), 0.0)
    memory = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    clock = itertools.count(1)

    def request(number: int) -> None:
        now, adapter = next(clock) / 1e3, asked[number]
        name = placement.choose(placement.homes(adapter))
        placement.begin(adapter, name, now)
        placement.end(adapter, name, now)

    def plan(_: int) -> None:
        for move in placement.plan(float(next(clock))):
            if move.to:
                placement.settle(move.digest, move.to)
            if move.away:
                placement.unsettle(move.digest, move.away)

    return {
        "replicas": replicas,
        "adapters": adapters,
        "with load": len(set(asked)),
        "a request, ms": timed(request),
        "a request to the base, ms": timed(lambda _: placement.choose(placement.replicas)),
        "a new home, ms": timed(lambda number: placement.new_home(f"adapter-{number}", next(clock) / 1e3)),
        "a look each second, ms": timed(plan),
        "a replica is lost, ms": timed(lambda number: placement.leave(str(number)))
        if replicas > TIMES
        else 0.0,
        "memory, MB": memory,
    }


def main() -> None:
    """Simulate all sizes, then time `Placement`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of them, the smallest first")
    parser.add_argument("--warm", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    sizes, costs = SIZES[: args.sizes], Costs.read()
    times = [placement_costs(*one) for one in sizes]
    print(report.table(times), flush=True)
    rows = [row for one in sizes for row in size(*one, costs, args.warm, args.seconds)]
    print(report.table(rows))
    if args.write:
        shape = Shape()
        workload = (
            f"SIMULATED: Zipf's law (exponent 1), {CLIENTS} clients a replica in a closed loop, prompts of "
            f"{shape.prompt} and answers of {shape.answer} tokens, more or less by half; replicas of "
            f"{shape.rows} rows with memory for {MEMORY} adapters, each lost once in {LIFE:g} s and back "
            f"with nothing after 60 s; each second {DRIFT:g} adapters change their place in the order of "
            f"popularity; {args.seconds:g} s after {args.warm:g} s."
        )
        notes = [
            f"a replica is this engine where its steps were measured: {costs.source}",
            "the ideal: every adapter in every memory, requests dealt evenly, nobody lost; below it are "
            "loads, uneven replicas and losses, above it are steps with fewer adapters in them",
            f"`edges`: that were simulated, {MOST_EDGES} at most; `edges needed`: by processor time a call "
            f"and a streamed token (edge-calls), each busy to {BUSY:g}",
            "edges that share replicas bring an adapter where others have it; that they know others' "
            "requests is not built",
            "`answers lost` had begun when their replica was lost; `sent elsewhere` had not",
        ]
        title = (
            "What `Placement` costs an edge that knows all adapters and replicas (measured, in this process)"
        )
        print(report.write("fleet-scale", workload, rows, notes, tables={title: times}))


if __name__ == "__main__":
    main()
