from __future__ import annotations

import argparse

import pytest

from benchmarks import edge_calls
from benchmarks.edge_calls import STREAM, UNARY, Cores, a_core


def test_cores_are_shared_only_where_there_are_too_few() -> None:
    assert Cores.of([0, 1], 1) == Cores(((0,),), (1,))
    assert Cores.of([0, 1], 2) == Cores(((0,), (0,)), (1,))
    assert Cores.of([0, 1, 2, 3, 4, 5], 2) == Cores(((0,), (1,)), (2, 3, 4, 5))
    assert Cores.of([3], 2) == Cores(((3,), (3,)), (3,))


def test_a_core_is_worth_what_calls_cost_where_it_was_busiest() -> None:
    rows = [
        {"calls": UNARY, "calls/s": 50.0, "edge ms a call": 9.0, "tokens a call": 8},
        {"calls": UNARY, "calls/s": 100.0, "edge ms a call": 1.0, "tokens a call": 8},
        {"calls": STREAM, "calls/s": 70.0, "edge ms a call": 2.4, "tokens a call": 64},
    ]
    found = a_core(rows)
    assert found["unary calls a second"] == pytest.approx(1000)
    assert found["edge us a streamed token"] == pytest.approx(1.4e3 / 56)
    assert found["streamed tokens a second"] == pytest.approx(64e3 / 2.4)


@pytest.mark.long
def test_two_edges_answer_over_the_same_replicas() -> None:
    args = argparse.Namespace(replicas=1, clients=1, callers=[4], seconds=1.0)
    rows, cores, memory = edge_calls.measure(2, args)
    assert [row["calls"] for row in rows] == ["unary", "streaming"]
    assert all(row["calls/s"] > 0 and row["edge ms a call"] > 0 for row in rows)
    assert len(cores.edges) == 2
    assert memory > 20
