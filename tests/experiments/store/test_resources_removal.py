"""Rows of deleted experiments go in steps, and so do outcomes that nobody waits for any more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import func, select

from router.experiments.model import Accepted, Disagreement, Pair, SegmentSpec
from router.experiments.store import database, resources, tables
from router.experiments.store.resources import RESPONSE_WAITS, UNIT_WAITS, remove_some
from tests.experiments.store.helpers import START, experiment, exposed, row, said, told


def rows(store) -> dict[str, int]:
    with database.reading(store._engine) as conn:
        found = {
            name.removeprefix(tables.PREFIX): conn.execute(
                select(func.count()).select_from(table)
            ).scalar_one()
            for name, table in tables.metadata.tables.items()
        }
    return {name: n for name, n in found.items() if n and name != "schema_version"}


def remove_all(store, now: float = 0.0) -> int:
    steps = 0
    while True:
        with database.writing(store._engine) as conn:
            if not remove_some(conn, store._bulk, now):
                return steps
        steps += 1


def test_nothing_of_a_deleted_experiment_stays(sql_store, monkeypatch):
    monkeypatch.setattr(resources, "CHUNK", 3)
    for name in ("x", "y"):
        sql_store.create(experiment(name, segments=(SegmentSpec("plan"),)))
        labels = {"segments": {"plan": "free"}}
        sql_store.expose([exposed(f"u{i}", f"{name}{i}", name=name, **labels) for i in range(8)])
        sql_store.record([said(f"{name}{i}") for i in range(8)])
        sql_store.pairs([Pair(name, 1, "b", "r", START, 1)])
        sql_store.disagree([Disagreement(name, 1, "u1", "r", START, "base", "adapters/m/versions/1")])
    before = rows(sql_store)
    sql_store.delete("x")
    assert remove_all(sql_store) == 4
    assert rows(sql_store) == {name: n // 2 for name, n in before.items()}
    assert row(sql_store, name="y") == (8, 8.0)
    sql_store.delete("y")
    remove_all(sql_store)
    assert rows(sql_store) == {}


def test_batches_remove_what_was_deleted(sql_store):
    sql_store.create(experiment("x"))
    sql_store.create(experiment("y"))
    sql_store.expose([exposed("u", "r")])
    sql_store.delete("x")
    assert sql_store.record([said("r")]) == (Accepted.UNKNOWN,)
    for i in range(3):
        sql_store.expose([exposed("u", f"r{i}", name="y")])
    assert rows(sql_store)["experiments"] == 1
    assert rows(sql_store)["exposures"] == 3


@pytest.mark.parametrize(("after", "left"), [(RESPONSE_WAITS, 2), (UNIT_WAITS, 0)])
def test_outcomes_wait_for_a_while(sql_store, monkeypatch, after, left):
    monkeypatch.setattr("router.experiments.store.recording.time.time", lambda: START)
    sql_store.record([said("r1"), replace(told("u"), experiment=""), told("u")])
    remove_all(sql_store, START + after - 1)
    monkeypatch.undo()
    remove_all(sql_store, START + after + 1)
    assert rows(sql_store).get("outcomes", 0) == left


def test_what_counts_does_not_wait(sql_store):
    sql_store.create(experiment())
    sql_store.expose([exposed("u", "r")])
    sql_store.record([said("r")])
    remove_all(sql_store, 1e12)
    assert row(sql_store) == (1, 1.0)
    assert rows(sql_store)["outcomes"] == 1
