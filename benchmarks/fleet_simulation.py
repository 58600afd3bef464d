"""`python -m benchmarks.fleet_simulation`: 2,000 adapters over 4 replicas, by who answers what.

A discrete-event simulation, benchmarks/fleet_model.py, with the costs of steps that `benchmarks.step_times`
measured. Where requests go is decided by `choose` of `router.replicas.engine`, by round robin, and by
consistent hashing; each policy gets the same clients.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.fleet_model import Costs, Shape, Simulation, outcome
from benchmarks.fleet_policies import policies


def compare(
    shape: Shape,
    costs: Costs,
    clients: int,
    warm: float,
    seconds: float,
    seeds: Sequence[int],
    slow: str = "",
) -> list[dict[str, Any]]:
    """A row for each policy, medians over seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for name, policy in policies(shape).items():
            simulation = Simulation([policy], shape, costs, seed, slow)
            simulation.run(clients, warm, seconds)
            found.setdefault(name, []).append(outcome(simulation, seconds))
    return [
        {"policy": name} | {key: median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    ]


def main() -> None:
    """Print the tables; `--write` keeps them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=160)
    parser.add_argument("--warm", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    shape, costs, times = Shape(), Costs.read(), (arguments.clients, arguments.warm, arguments.seconds, seeds)
    rows = compare(shape, costs, *times)
    tables = {"One replica ten times slower": compare(shape, costs, *times, slow="2")}
    print(report.table(rows))
    for title, more in tables.items():
        print(f"\n{title}\n\n{report.table(more)}")
    if arguments.write:
        workload = (
            f"SIMULATED: {shape.adapters} adapters by Zipf's law (exponent 1) over {shape.replicas} "
            f"replicas of {shape.rows} rows, {shape.slots} slots and memory for {shape.memory} adapters "
            f"each; {arguments.clients} clients in a closed loop, prompts of {shape.prompt} and answers of "
            f"{shape.answer} tokens; {arguments.seconds:g} s after {arguments.warm:g} s of warm-up, "
            f"medians of {arguments.seeds} seeds."
        )
        notes = [
            f"what a step and a load cost was measured: {costs.source}",
            "a CPU's memory is its device, so bringing an adapter from one to the other costs nothing here: "
            "on a GPU what is not on the device costs an upload",
            "the way between edge and replica costs nothing here, and no prefix is shared",
        ]
        print(report.write("placement", workload, rows, notes, tables=tables, page="scale"))


if __name__ == "__main__":
    main()
