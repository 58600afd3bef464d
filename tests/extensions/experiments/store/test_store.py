"""Experiments, audit trail and salts are kept; old rows are removed; large tables are read by an index."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event, func, select

from router.errors import AlreadyExists, ExperimentNotFound, StaleEtag
from router.extensions.experiments.model import (
    Accepted,
    Aggregate,
    ArmSpec,
    Kind,
    MetricSpec,
    Mode,
    SegmentSpec,
    Unanswered,
)
from router.extensions.experiments.store import store as resources
from router.extensions.experiments.store import store as waiting
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.store import (
    RESPONSE_WAITS,
    UNIT_WAITS,
    ExperimentStore,
    WaitingRows,
    remove_some,
)
from router.shared import database
from router.types import AdapterRef
from tests.extensions.experiments.store.helpers import (
    START,
    act,
    experiment,
    exposed,
    outcome,
    row,
    unit_outcome,
)


def rich():
    """One that has a value in every kind of field."""
    metric = MetricSpec("cost", Kind.RATIO, False, Aggregate.SUM, "tokens", Unanswered.ZERO, True, 0.1, True)
    found = experiment("rich", metric)
    arms = (
        ArmSpec("a", 0.25, AdapterRef("medical", "1.2.0")),
        ArmSpec("b", 0.75),
    )
    spec = replace(found.spec, arms=arms, mode=Mode.SHADOW, slot=(0.1, 1 / 3), enrolment=1e-3)
    return replace(found, spec=spec, created=1.5, stopped=2.5, stop_reason="harm", promoted="b")


def test_what_is_kept_comes_back_the_same(store):
    kept = store.create(rich())
    assert kept.etag
    assert store.get("rich") == kept
    assert replace(kept, etag="") == rich()


def test_a_name_is_taken_once(store):
    store.create(experiment())
    with pytest.raises(AlreadyExists, match="experiments/x exists already"):
        store.create(experiment())


def test_all_by_name(store):
    for name in ("b", "a", "B", "a-1"):
        store.create(experiment(name))
    assert [e.name for e in store.list()] == ["B", "a", "a-1", "b"]


def test_unknown_names_are_not_found(store):
    calls = (
        lambda: store.get("nobody"),
        lambda: store.delete("nobody"),
        lambda: store.data("nobody", 1),
        lambda: store.set_peak("nobody", 1, 1.0),
        lambda: store.replace(experiment("nobody"), act("nobody")),
    )
    for call in calls:
        with pytest.raises(ExperimentNotFound, match="nobody"):
            call()


def test_an_unknown_phase_names_those_that_are_there(store):
    store.create(experiment(phases=(1.0, 2.0)))
    with pytest.raises(ExperimentNotFound, match="phase 3 is not there, there are: 1, 2"):
        store.data("x", 3)
    store.create(experiment("draft", phases=()))
    with pytest.raises(ExperimentNotFound, match="there are: none"):
        store.data("draft", 1)


def test_a_change_needs_the_etag_and_makes_a_new_one(store):
    first = store.create(experiment())
    second = store.replace(replace(first, stop_reason="one"), act())
    assert second.etag != first.etag
    assert store.get("x") == second
    for stale in (first.etag, ""):
        with pytest.raises(StaleEtag, match="read it again"):
            store.replace(replace(first, stop_reason="two", etag=stale), act())
    assert store.get("x") == second
    assert len(store.trail("x")) == 1


def test_a_phase_that_is_added_is_there(store):
    kept = store.create(experiment(phases=(1.0,)))
    store.replace(replace(experiment(phases=(1.0, 2.0)), etag=kept.etag), act())
    assert store.data("x", 2).buckets == ()


def test_acts_by_time(store):
    store.create(experiment())
    for what, time in (("start", 2.0), ("create", 1.0), ("stop", 3.0), ("stop again", 3.0)):
        store.audit(act(what=what, time=time))
    store.audit(act("other"))
    assert [e.act for e in store.trail("x")] == ["create", "start", "stop", "stop again"]
    assert store.trail("x")[0] == act(what="create", time=1.0)
    assert store.trail("nobody") == ()


def test_a_reason_may_hold_anything(store):
    store.audit(replace(act(), reason="50 % 'better'\n\0\\ \U0001f600"))
    assert store.trail("x")[0].reason.replace("\0", "") == "50 % 'better'\n\\ \U0001f600"


def test_delete_forgets_everything(store):
    kept = store.create(experiment())
    store.audit(act())
    store.expose([exposed("u", "r")])
    store.record([outcome("r", key="k")])
    with pytest.raises(StaleEtag):
        store.delete("x", "another")
    store.delete("x", kept.etag)
    assert store.list() == ()
    assert store.trail("x") == ()
    store.create(experiment())
    assert store.data("x", 1).buckets == ()
    store.expose([exposed("u", "r2")])
    store.record([outcome("r2")])
    assert row(store) == (1, 1.0)


def test_a_salt_is_made_once(store):
    found = store.salt("holdout")
    assert len(found) >= 8
    assert store.salt("holdout") == found
    assert store.salt("namespace:answers") != found


def test_the_largest_peak_stays(store):
    store.create(experiment())
    for peak in (0.5, 7.5, 3.0):
        store.set_peak("x", 1, peak)
    assert store.data("x", 1).peak == 7.5


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
        sql_store.create(experiment(name, segments=(SegmentSpec("plan", ("free",)),)))
        labels = {"segments": {"plan": "free"}}
        sql_store.expose([exposed(f"u{i}", f"{name}{i}", name=name, **labels) for i in range(8)])
        sql_store.record([outcome(f"{name}{i}") for i in range(8)])
    before = rows(sql_store)
    sql_store.delete("x")
    assert remove_all(sql_store) == 4
    assert rows(sql_store) == {name: n // 2 for name, n in before.items()}
    assert row(sql_store, name="y") == (8, 8.0)
    sql_store.delete("y")
    remove_all(sql_store)
    assert rows(sql_store) == {}


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_deleted_experiment_is_not_on_the_disk_once_no_reader_keeps_it(tmp_path):
    store = ExperimentStore(f"sqlite:///{tmp_path}/experiments.db")
    for name in ("x", "y"):
        store.create(experiment(name))
        store.expose([exposed(f"unit-of-{name}", f"r{name}", name=name)])
    with closing(sqlite3.connect(tmp_path / "experiments.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute(f"SELECT count(*) FROM {tables.PREFIX}units").fetchone()
        store.delete("x")
        for _ in range(4):
            store.tidy()
        assert b"unit-of-x" in on_disk(tmp_path)
        reader.execute("COMMIT")
        store.tidy()
    assert (b"unit-of-x" in on_disk(tmp_path), b"unit-of-y" in on_disk(tmp_path)) == (False, True)
    store.close()


def test_batches_remove_what_was_deleted(sql_store):
    sql_store.create(experiment("x"))
    sql_store.create(experiment("y"))
    sql_store.expose([exposed("u", "r")])
    sql_store.delete("x")
    assert sql_store.record([outcome("r")]) == (Accepted.UNKNOWN,)
    for i in range(3):
        sql_store.expose([exposed("u", f"r{i}", name="y")])
    assert rows(sql_store)["experiments"] == 1
    assert rows(sql_store)["exposures"] == 3


@pytest.mark.parametrize(("after", "left"), [(RESPONSE_WAITS, 2), (UNIT_WAITS, 0)])
def test_outcomes_wait_for_a_while(sql_store, monkeypatch, after, left):
    monkeypatch.setattr("router.extensions.experiments.store.recording.time.time", lambda: START)
    sql_store.record([outcome("r1"), replace(unit_outcome("u"), experiment=""), unit_outcome("u")])
    remove_all(sql_store, START + after - 1)
    monkeypatch.undo()
    remove_all(sql_store, START + after + 1)
    assert rows(sql_store).get("outcomes", 0) == left


def test_what_counts_does_not_wait(sql_store):
    sql_store.create(experiment())
    sql_store.expose([exposed("u", "r")])
    sql_store.record([outcome("r")])
    remove_all(sql_store, 1e12)
    assert row(sql_store) == (1, 1.0)
    assert rows(sql_store)["outcomes"] == 1


COUNTED, UNKNOWN, NOT_KEPT = Accepted.COUNTED, Accepted.UNKNOWN, Accepted.NOT_KEPT


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def bounded(url, clock):
    """A store in which three outcomes may wait, with a running experiment."""
    found = ExperimentStore(url, max_waiting=3)
    found._waiting = WaitingRows(3, clock)
    found.create(experiment())
    yield found
    found.close()


def test_the_last_are_turned_away_and_those_of_something_are_kept(bounded):
    bounded.expose([exposed("u", "r")])
    outcomes = [
        outcome("n1"),
        outcome("r"),
        unit_outcome("nobody"),
        outcome("n2"),
        outcome("n3"),
        unit_outcome("u"),
        unit_outcome("nobody"),
    ]
    assert bounded.record(outcomes) == (UNKNOWN, COUNTED, UNKNOWN, UNKNOWN, NOT_KEPT, COUNTED, NOT_KEPT)
    assert bounded.record([outcome("n4"), outcome("r")]) == (NOT_KEPT, COUNTED)
    assert row(bounded) == (1, 1.0)


def test_one_that_was_turned_away_may_come_again(bounded, clock):
    late = outcome("n4", key="k")
    assert bounded.record([outcome("n1"), outcome("n2"), outcome("n3"), late, late])[3:] == (
        NOT_KEPT,
        NOT_KEPT,
    )
    assert bounded.record([late]) == (NOT_KEPT,)
    bounded.expose([exposed("u", "n1")])  # whose outcome waits no more
    clock.now += waiting.FULL_SECONDS
    assert bounded.record([late, replace(late, key="l")]) == (UNKNOWN, NOT_KEPT)
    bounded.expose([exposed("v", "n4")])
    assert bounded.record([late]) == (Accepted.DUPLICATE,)


def test_rows_of_others_are_found_now_and_then(bounded, clock, url):
    assert bounded.record([outcome("n1")]) == (UNKNOWN,)
    other = ExperimentStore(url)
    assert set(other.record([outcome(f"o{i}") for i in range(5)])) == {UNKNOWN}
    other.close()
    assert bounded.record([outcome("n2")]) == (UNKNOWN,)
    clock.now += waiting.COUNT_SECONDS
    assert bounded.record([outcome("n3")]) == (NOT_KEPT,)


def test_a_store_that_is_opened_anew_knows_what_waits(bounded, url):
    bounded.record([outcome("n1"), outcome("n2")])
    again = ExperimentStore(url, max_waiting=3)
    assert again.record([outcome("n3"), outcome("n4")]) == (UNKNOWN, NOT_KEPT)
    again.close()


WAITING_INDEX = "INDEX lora_router_waiting_received"  # outcomes that wait, once a minute and as many as may
LARGE = ("units", "exposures", "outcomes", "values")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_every_large_table_is_searched_by_an_index(sql_store):
    found: dict[str, tuple] = {}

    def keep(_conn, _cursor, statement, parameters, *_rest):
        if statement.startswith(("SELECT", "DELETE")):
            found[statement] = parameters

    event.listen(sql_store._engine, "after_cursor_execute", keep)
    past = MetricSpec("n", Kind.MEAN, covariate=True)
    for name in ("x", "y"):
        sql_store.create(experiment(name, past))
    sql_store.record([outcome("r1", "n"), unit_outcome("u", "n", at=-5)])
    sql_store.expose([exposed("u", "r1"), exposed("v", "r2")])
    sql_store.expose([exposed("u", "r1", name="y"), exposed("u", "r2", name="y")])
    sql_store.record([outcome("r1", "n"), unit_outcome("u", "n"), unit_outcome("u", "n", at=-5)])
    sql_store.data("x", 1)
    event.remove(sql_store._engine, "after_cursor_execute", keep)
    assert len(found) > 20
    with database.reading(sql_store._engine) as conn:
        plans = {
            text: [step[3] for step in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters)]
            for text, parameters in found.items()
        }
    scans = [(t, s) for t, steps in plans.items() for s in steps if s.startswith("SCAN lora_router_")]
    scans = [(t, s) for t, s in scans if WAITING_INDEX not in s]
    assert [(t, s) for t, s in scans if s.split("_")[2].split()[0] in LARGE] == []
