from __future__ import annotations

import pytest

from benchmarks.fleet_model import Costs, Shape
from benchmarks.fleet_policies import Ours
from benchmarks.fleet_scale import CLIENTS, edges_for, ideal, placement_costs, simulated, ways

COSTS = Costs(0.0115, 0.00047, 0.0006, 0.00016, 0.051)


def test_edges_are_counted_by_what_calls_and_tokens_cost() -> None:
    assert edges_for(calls=1.0, tokens=64.0, ms_a_call=1.0, us_a_token=20.0) == 1
    assert edges_for(calls=700.0, tokens=0.0, ms_a_call=2.0, us_a_token=20.0) == 2  # 1.4 cores, each to 0.7
    assert edges_for(calls=0.0, tokens=70_001.0, ms_a_call=2.0, us_a_token=20.0) == 3


def test_several_edges_come_near_to_what_evenly_dealt_requests_give() -> None:
    shape = Shape(adapters=200, replicas=4, memory=160)
    most = ideal(shape, COSTS, 20.0, 10.0)
    edges = ways(shape, 3)["ours, and know others' requests"]
    found, simulation = simulated(edges, shape, COSTS, 20.0, 10.0)
    assert 0.8 < found["tokens/s"] / most < 1.3
    assert found["in memory"] > 0.85
    first, *_ = edges
    assert isinstance(first, Ours)
    held = sum(first.placement.held.values())  # of all edges, as replicas told it a second ago
    assert held == pytest.approx(CLIENTS * shape.replicas, rel=0.2)
    assert simulation.asked > 0


def test_placement_is_timed_at_a_size() -> None:
    found = placement_costs(30, 200)
    assert found["with load"] <= 200
    assert 0 < found["a request, ms"] < found["a look each second, ms"]
    assert found["memory, MB"] > 0
