"""Secondary metrics may be changed while a phase runs: nothing that was recorded is lost or doubled."""

from __future__ import annotations

import logging

import pytest

from router.extensions.experiments.model import Aggregate, Kind, MetricSpec, Unanswered
from router.extensions.experiments.store import session as migrating
from router.extensions.experiments.store.store import ExperimentStore
from tests.extensions.experiments.store.helpers import (
    WINDOW,
    act,
    experiment,
    exposed,
    outcome,
    row,
    unit_outcome,
    with_secondary,
)

CSAT = MetricSpec("csat", Kind.MEAN, aggregate=Aggregate.SUM)
PAST = MetricSpec("csat", Kind.MEAN, aggregate=Aggregate.SUM, covariate=True)
COST = MetricSpec("cost", Kind.RATIO, per="words", missing=Unanswered.ZERO)


def change(store, *secondary: MetricSpec) -> None:
    store.replace(with_secondary(store.get("x"), *secondary), act())


@pytest.fixture
def running(store):
    store.create(experiment())
    store.record(
        [unit_outcome("u", "csat", 50.0, at=-5), unit_outcome("v", "csat", 60.0, at=-5, name="never")]
    )
    store.expose([exposed("u", "r1"), exposed("v", "r2"), exposed("w", "r3", at=5)])
    late = outcome("r2", "csat", 99.0, at=WINDOW + 1)
    store.record(
        [outcome("r1", "csat", 4.0), outcome("r1", "csat", 3.0, at=2), outcome("r2", "words", 7.0), late]
    )
    return store


def test_one_that_is_added_has_what_was_recorded(running):
    change(running, CSAT, COST)
    assert row(running, "csat") == (1, 7.0)
    assert row(running, "cost") == (3, 0.0, 7.0)
    assert [b.answered for b in running.data("x", 1).buckets] == [{"good": 0, "csat": 1, "cost": 0}]
    running.record([outcome("r1", "csat", 1.0), outcome("r2", "csat", 2.0), outcome("r2", "cost", 5.0)])
    assert row(running, "csat") == (2, 10.0)
    assert row(running, "cost") == (3, 5.0, 7.0)


def test_one_that_was_removed_and_added_again_is_not_doubled(running):
    for secondary in ((CSAT,), (), (CSAT,), (COST,), (COST, CSAT)):
        change(running, *secondary)
        running.record([outcome("r2", "csat", 1.0)])
    assert row(running, "csat") == (2, 7.0 + 5)
    change(running)
    assert set(running.data("x", 1).buckets[0].moments) == {"good"}


def test_one_may_be_defined_anew(running):
    change(running, CSAT)
    change(running, MetricSpec("csat", Kind.MEAN, aggregate=Aggregate.MAX, cap=3.5))
    assert row(running, "csat") == (1, 3.5)
    change(running, MetricSpec("csat", Kind.RATIO))
    assert row(running, "csat") == (1, 7.0, 1.0)


def test_its_past_is_read_too(running):
    change(running, PAST)
    assert row(running, "csat") == (1, 7.0, 50.0)
    running.record([unit_outcome("u", "csat", 8.0, at=-7), unit_outcome("v", "csat", 1.0)])
    assert row(running, "csat") == (2, 8.0, 118.0)
    change(running, CSAT)
    running.record([unit_outcome("u", "csat", 2.0, at=-9)])
    change(running, PAST)
    assert row(running, "csat") == (2, 8.0, 120.0)


def test_a_ratio_may_read_the_past_of_what_another_metric_reads(running):
    change(running, CSAT)
    change(running, CSAT, MetricSpec("words", Kind.RATIO, per="csat", covariate=True))
    assert row(running, "csat") == (1, 7.0)
    assert row(running, "words") == (1, 7.0, 0.0, 0.0, 1.0)
    running.record([unit_outcome("v", "words", 30.0, at=-5)])
    assert row(running, "words") == (1, 7.0, 0.0, 30.0, 60.0)


def test_what_is_only_shown_in_another_way_is_not_made_anew(sql_store, monkeypatch):
    sql_store.create(with_secondary(experiment(), CSAT))
    monkeypatch.delattr(migrating, "_refill")
    monkeypatch.delattr(migrating, "_resum")
    change(sql_store, MetricSpec("csat", Kind.MEAN, False, aggregate=Aggregate.SUM))
    assert sql_store.get("x").spec.secondary[0].higher_is_better is False


def test_another_server_sees_it(url):
    first, second = ExperimentStore(url), ExperimentStore(url)
    first.create(experiment())
    second.expose([exposed("u", "r")])
    second.record([outcome("r", "csat", 2.0)])
    assert set(second.data("x", 1).buckets[0].moments) == {"good"}
    change(first, CSAT)
    second.record([outcome("r", "csat", 5.0)])
    for store in (first, second):
        assert row(store, "csat") == (1, 7.0)
        store.close()


def test_many_units_in_chunks_with_a_word(sql_store, monkeypatch, caplog):
    monkeypatch.setattr(migrating, "CHUNK", 3)
    sql_store.create(experiment())
    sql_store.expose([exposed(f"u{i}", f"r{i}", at=i) for i in range(8)])
    sql_store.record([outcome(f"r{i}", "csat", 1.0 + i, at=i) for i in range(8)])
    with caplog.at_level(logging.INFO):
        change(sql_store, CSAT)
    assert row(sql_store, "csat") == (8, 36.0)
    assert "x, phase 1: sums are made anew, 6 of 8 units" in caplog.text
