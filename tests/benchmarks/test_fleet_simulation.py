from __future__ import annotations

from benchmarks.fleet_simulation import Ours, Simulation, compare


def test_the_same_seed_gives_the_same_outcome_and_every_token_is_counted() -> None:
    runs = []
    for _ in "12":
        simulation = Simulation(Ours(1), 1, 1.0)
        simulation.run(40, 0.0, 4.0)
        runs.append([(m.tokens, m.held) for m in simulation.machines.values()])
        assert sum(m.held for m in simulation.machines.values()) <= 40
        for machine in simulation.machines.values():
            assert len(machine.memory) <= 400
            assert len(machine.device) <= 32
    assert runs[0] == runs[1]
    assert sum(tokens for tokens, _ in runs[0]) > 1000


def test_homes_find_more_adapters_than_round_robin() -> None:
    rows = {row["policy"]: row for row in compare(1.0, 120, 6.0, 6.0, [1])}
    ours, others = rows["homes by load, two choices"], rows["round robin"]
    assert ours["in memory"] > others["in memory"] + 0.1
    assert ours["tokens/s"] > rows["consistent hashing"]["tokens/s"]
