from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.fleet_model import Costs, Request, Shape, Simulation
from benchmarks.fleet_policies import ConsistentHash, Ours, Ring, RoundRobin
from benchmarks.fleet_simulation import compare

COSTS = Costs(0.0115, 0.00047, 0.0006, 0.00016, 0.051)
SHAPE = Shape()


def test_the_same_seed_gives_the_same_outcome_and_every_token_is_counted() -> None:
    runs = []
    for _ in "12":
        simulation = Simulation([Ours(1, SHAPE)], SHAPE, COSTS, 1)
        simulation.run(40, 0.0, 4.0)
        runs.append([(m.tokens, m.held) for m in simulation.machines.values()])
        assert sum(m.held for m in simulation.machines.values()) <= 40
        for machine in simulation.machines.values():
            assert len(machine.memory) <= 400
            assert len(machine.device) <= 32
    assert runs[0] == runs[1]
    assert sum(tokens for tokens, _ in runs[0]) > 1000


def test_one_client_waits_for_its_load_its_prompt_and_its_tokens() -> None:
    shape = replace(SHAPE, adapters=1, replicas=1, prompt=100, answer=10)
    simulation = Simulation([RoundRobin()], shape, Costs(0.01, 0.002, 0.003, 0.0001, 0.5), 1)
    simulation.run(1, 0.0, 20.0)
    first = 0.01 + 0.003 + 100 * 0.0001  # the step that reads the prompt gives the first token
    assert simulation.firsts[0] == pytest.approx(0.5 + first)
    assert simulation.firsts[1:] == pytest.approx([first] * (len(simulation.firsts) - 1))
    whole = first + 9 * (0.01 + 0.002 + 0.003)
    assert len(simulation.firsts) == pytest.approx((20.0 - 0.5) / whole, abs=2)
    (machine,) = simulation.machines.values()
    assert machine.tokens == pytest.approx(10 * len(simulation.firsts), abs=10)


def test_a_load_makes_the_steps_beside_it_longer() -> None:
    def tokens(held: float) -> int:
        shape = replace(SHAPE, replicas=1, memory=2)
        simulation = Simulation([RoundRobin()], shape, replace(COSTS, held=held), 1)
        simulation.run(8, 0.0, 20.0)
        return sum(machine.tokens for machine in simulation.machines.values())

    assert tokens(0.05) < 0.95 * tokens(0.0)


def test_who_comes_amid_many_steps_is_let_in_after_the_one_that_runs() -> None:
    """Many steps are one event; that changes nothing of when they end."""
    shape = replace(SHAPE, adapters=1, replicas=1, prompt=1, answer=1000)
    simulation = Simulation([RoundRobin()], shape, Costs(0.1, 0.0, 0.0, 0.0, 0.0), 7)
    simulation.run(2, 0.0, 60.0)  # they come within half a second
    early, late = sorted(simulation.firsts)
    assert 0.1 - 1e-9 <= early <= late <= 0.2 + 1e-9


def test_what_was_on_a_lost_machine_goes_elsewhere_or_is_lost_and_nobody_is_forgotten() -> None:
    shape = replace(SHAPE, adapters=50, replicas=6, memory=20)
    edges = [Ours(seed, shape, loads=True, homes=seed == 2) for seed in (1, 2)]
    simulation = Simulation(edges, shape, COSTS, 1, drift=1.0)
    simulation.run(120, 0.0, 60.0, loss=0.2, back=10.0)
    assert simulation.lost > 0
    assert simulation.elsewhere > 0
    held = sum(machine.held for machine in simulation.machines.values())
    asking = sum(kind == "ask" for _, _, kind, _ in simulation._events)
    assert held + asking == 120
    assert len(simulation.machines) >= 4  # those that are lost come back
    for edge in edges:
        assert set(edge.placement.replicas) == set(simulation.machines)


def test_homes_find_more_adapters_than_round_robin() -> None:
    rows = {row["policy"]: row for row in compare(SHAPE, COSTS, 160, 60.0, 60.0, [1])}
    ours, others = rows["homes by load, two choices"], rows["round robin"]
    assert ours["in memory"] > others["in memory"] + 0.1
    assert ours["tokens/s"] > rows["consistent hashing"]["tokens/s"]


def test_the_ring_moves_only_the_adapters_of_who_is_lost() -> None:
    policy, machines = ConsistentHash(Ring(8)), Simulation([], replace(SHAPE, replicas=8), COSTS, 1).machines

    def homes() -> dict[str, str]:
        return {name: policy.choose(Request(name, 0, 0.0), machines, 0.0) for name in map(str, range(200))}

    before = homes()
    del machines["3"]
    after = homes()
    assert {name for name in before if before[name] != after[name]} == {
        name for name, home in before.items() if home == "3"
    }
