"""Stretches of time, and what a unit's outcomes come to by what its metric says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.extensions.experiments.model import (
    Aggregate,
    Experiment,
    Kind,
    MetricSpec,
    Unanswered,
)
from router.extensions.experiments.stats.moments import Moments
from router.extensions.experiments.store.series import (
    FIRST_STRETCHES,
    first_width,
    powers,
    stretch_number,
    stretch_span,
)
from tests.extensions.experiments.store.helpers import (
    GOOD,
    START,
    WINDOW,
    experiment,
    exposed,
    moments,
    outcome,
    row,
    unit_outcome,
)


@pytest.mark.parametrize(("window", "width"), [(0, 1), (24, 1), (2400, 100), (86_400, 3600), (1e7, 3600)])
def test_the_first_ones(window, width):
    assert first_width(window) == width


@pytest.mark.slow
@given(st.floats(0, 1e9), st.sampled_from([1.0, 12.5, 3600.0]))
def test_every_time_is_in_its_stretch(elapsed, width):
    begin, seconds = stretch_span(stretch_number(elapsed, width), width)
    assert begin <= elapsed < begin + seconds
    assert seconds == width or seconds <= elapsed * 2 / FIRST_STRETCHES * 1.0001


@given(st.integers(0, 20 * FIRST_STRETCHES), st.sampled_from([1.0, 3600.0]))
def test_they_follow_each_other(stretch, width):
    begin, seconds = stretch_span(stretch, width)
    assert stretch_span(stretch + 1, width)[0] == begin + seconds
    assert stretch_number(begin, width) == stretch


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4))
def test_powers_are_in_the_order_of_moments(row):
    found = Moments.of(*([value] for value in row))
    assert powers(tuple(row)) == pytest.approx((*found.sums, *found.products, *found.cubes))


def test_before_the_phase_is_the_first_one():
    assert stretch_number(-5.0, 1.0) == 0


def test_a_year_of_seconds_is_some_thousand_of_them():
    assert stretch_number(365 * 86_400, 1.0) < 6000


MEAN, RATIO = Kind.MEAN, Kind.RATIO


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregate", "value"),
    [(Aggregate.SUM, 9.0), (Aggregate.MEAN, 3.0), (Aggregate.MAX, 5.0), (Aggregate.LAST, 4.0)],
)
def test_several_outcomes_become_one_value(store, aggregate, value):
    store.create(experiment("x", MetricSpec("n", MEAN, aggregate=aggregate)))
    store.expose([exposed("u", "r1"), exposed("u", "r2", at=5)])
    store.record([outcome("r1", "n", 4.0, at=30), outcome("r2", "n", 5.0, at=20)])
    store.record([outcome("r1", "n", 0.0, at=10)])
    assert row(store, "n") == (1, value)
    assert moments(store.data("x", 1), "n").products == (value**2,)


def test_the_last_of_two_at_the_same_time_is_the_larger(store):
    store.create(experiment("x", MetricSpec("n", MEAN, aggregate=Aggregate.LAST)))
    store.expose([exposed("u", "r1"), exposed("v", "r2")])
    store.record([outcome("r1", "n", -4.0), outcome("r2", "n", -5.0)])
    store.record([outcome("r1", "n", -5.0), outcome("r2", "n", -4.0)])
    assert row(store, "n") == (2, -8.0)


def test_the_largest_may_be_negative(store):
    store.create(experiment("x", MetricSpec("n", MEAN)))
    store.expose([exposed("u", "r1")])
    store.record([outcome("r1", "n", -4.0)])
    assert row(store, "n") == (1, -4.0)


def test_a_value_is_capped_as_a_whole_and_so_is_its_past(store):
    metric = MetricSpec("n", MEAN, aggregate=Aggregate.SUM, covariate=True, cap=10.0, least=1.0)
    store.create(experiment("x", metric))
    store.record([unit_outcome("u", "n", 99.0, at=-5), unit_outcome("v", "n", 4.0, at=-5)])
    store.expose([exposed(unit, unit) for unit in "uvw"])
    store.record([outcome(r, "n", v) for r, v in (("u", 8.0), ("u", 7.0), ("v", 0.25), ("w", 3.0))])
    found = moments(store.data("x", 1), "n")
    assert (found.n, found.sums) == (3, (10.0 + 1 + 3, 10.0 + 4 + 1))
    assert found.products == (110.0, 107.0, 117.0)
    assert found.cubes == (1028.0, 1000.0 + 4 + 9, 1000.0 + 16 + 3, 1065.0)
    store.record([outcome("u", "n", -20.0)])
    assert row(store, "n") == (3, 1.0 + 1 + 3, 15.0)


def test_units_without_an_outcome_are_capped_too(store):
    metric = MetricSpec("n", MEAN, missing=Unanswered.ZERO, cap=10.0, least=1.0)
    store.create(experiment("x", metric))
    store.expose([exposed("u", "r1")])
    assert row(store, "n") == (1, 1.0)


def test_a_unit_counts_at_once_where_missing_is_zero(store):
    store.create(experiment("x", MetricSpec("bought", MEAN, missing=Unanswered.ZERO)))
    store.expose([exposed("u", "r1"), exposed("v", "r2")])
    assert row(store, "bought") == (2, 0.0)
    store.record([outcome("r1", "bought", 3.0)])
    assert row(store, "bought") == (2, 3.0)
    assert store.data("x", 1).buckets[0].answered == {"bought": 1}


def test_a_ratio_by_responses(store):
    store.create(experiment("x", MetricSpec("thumbs", RATIO)))
    store.expose([exposed("u", "r1"), exposed("u", "r2"), exposed("v", "r3")])
    store.record([outcome("r1", "thumbs"), outcome("r1", "thumbs")])
    assert row(store, "thumbs") == (1, 2.0, 2.0)
    store.expose([exposed("u", "r4", at=WINDOW), exposed("u", "r5", at=WINDOW + 1)])
    assert row(store, "thumbs") == (1, 2.0, 3.0)
    assert moments(store.data("x", 1), "thumbs").products == (4.0, 6.0, 9.0)


def test_a_ratio_whose_missing_is_zero_has_every_response(store):
    store.create(experiment("x", MetricSpec("thumbs", RATIO, missing=Unanswered.ZERO)))
    store.expose([exposed("u", "r1"), exposed("u", "r2"), exposed("v", "r3")])
    assert row(store, "thumbs") == (2, 0.0, 3.0)
    store.record([outcome("r3", "thumbs")])
    assert row(store, "thumbs") == (2, 1.0, 3.0)


def test_a_ratio_by_outcomes_and_by_another_outcome(store):
    by_outcomes = MetricSpec("cost", RATIO, per="outcomes")
    by_other = MetricSpec("errors", RATIO, per="words")
    store.create(experiment("x", by_outcomes, by_other))
    store.expose([exposed("u", "r1")])
    store.record([outcome("r1", "words", 50.0), outcome("r1", "cost", 3.0)])
    assert row(store, "errors") == (0, 0.0, 0.0)
    store.record([outcome("r1", "errors", 2.0), outcome("r1", "cost", 4.0), outcome("r1", "words", 10.0)])
    assert row(store, "cost") == (1, 7.0, 2.0)
    assert row(store, "errors") == (1, 2.0, 60.0)


@pytest.mark.parametrize(
    ("metric", "covariate"),
    [
        (MetricSpec("n", MEAN, aggregate=Aggregate.SUM, covariate=True), (9.0,)),
        (MetricSpec("n", MEAN, aggregate=Aggregate.MAX, covariate=True), (3.0,)),
        (MetricSpec("n", RATIO, covariate=True), (9.0, 3.0)),
        (MetricSpec("n", RATIO, covariate=True, per="outcomes"), (9.0, 3.0)),
        (MetricSpec("n", RATIO, covariate=True, per="words"), (9.0, 40.0)),
    ],
)
def test_the_past_of_a_unit(store, metric, covariate):
    store.create(experiment("old", phases=(START - 900,)))
    store.create(experiment("x", metric))
    store.expose([exposed("u", "r0", at=-800, name="old")])
    store.record([outcome("r0", "n", 4.0, at=-700), unit_outcome("u", "words", 40.0, at=-600, name="never")])
    store.record([unit_outcome("u", "n", 5.0, at=-1, name="x"), unit_outcome("v", "n", 99.0, at=-1)])
    store.record([unit_outcome("u", "n", 0.0, at=-5, name="old")])
    store.expose([exposed("u", "r1", at=10)])
    store.record([outcome("r1", "n", 1.0, at=20), unit_outcome("u", "n", 50.0, at=0)])
    store.record([unit_outcome("u", "n", 70.0, at=-5, name="old")])  # told late
    below = {"responses": (1.0,), "outcomes": (1.0,), "words": (0.0,)}[metric.per]
    now = (1.0, *below) if metric.kind is RATIO else (1.0,)
    assert row(store, "n") == (1, *now, *covariate)


def test_a_unit_without_a_past(store):
    mean, ratio = MetricSpec("n", MEAN, covariate=True), MetricSpec("m", RATIO, covariate=True)
    store.create(experiment("x", mean, ratio))
    store.expose([exposed("u", "r1")])
    store.record([outcome("r1", "n", 2.0), outcome("r1", "m", 3.0)])
    assert row(store, "n") == (1, 2.0, 0.0)
    assert row(store, "m") == (1, 3.0, 1.0, 0.0, 1.0)


def test_an_outcome_of_two_experiments_is_past_once(store):
    metric = MetricSpec("n", MEAN, covariate=True, aggregate=Aggregate.SUM)
    for name, started in (("old", START - 900), ("older", START - 950), ("x", START)):
        store.create(experiment(name, metric, phases=(started,)))
    store.record([outcome("r0", "n", 7.0, at=-700)])
    store.expose([exposed("u", "r0", at=-800, name="old"), exposed("u", "r0", at=-800, name="older")])
    store.expose([exposed("u", "r1", at=10)])
    store.record([outcome("r1", "n", 1.0, at=20)])
    assert row(store, "n") == (1, 1.0, 7.0)


def test_late_outcomes_and_unserved_requests_are_counted(store):
    store.create(experiment())
    store.expose([exposed("u", "r1"), exposed("v", "r2", "b")])
    late = [outcome("r1", at=1e7), outcome("r2", at=1e7), outcome("r2", "error", at=1e7)]
    store.record([*late, outcome("r2", "unread", at=1e7), outcome("r2", at=20)])
    store.record([*late, outcome("r2", "time_without_token", 3.0)])
    data = store.data("x", 1)
    assert (data.late, data.unserved) == (2, {"b": 1})


def test_a_metric_reads_what_is_within_its_own_window(store):
    short = MetricSpec("thumbs", Kind.PROPORTION, window=600.0, missing=Unanswered.ZERO)
    store.create(experiment("x", GOOD, short, grace=50.0))
    store.expose([exposed("u", "r1"), exposed("v", "r2"), exposed("w", "r3")])
    times = {"r1": (600.0, 650.0), "r2": (601.0, 601.0), "r3": (600.0, 651.0)}
    found = store.record([outcome(r, "thumbs", at=at, came=came) for r, (at, came) in times.items()])
    assert [one.value for one in found] == ["counted", "late", "late"]
    assert row(store, "thumbs") == (3, 1.0)
    assert store.data("x", 1).late == 2


def early(*guardrails: MetricSpec) -> Experiment:
    """One whose guardrails are read after 600 seconds, too."""
    made = experiment("x", GOOD, *guardrails)
    (phase,) = made.phases
    return replace(made, phases=(replace(phase, early=600.0),))


def test_built_in_guardrails_are_read_early_too(store):
    errors = MetricSpec("error", RATIO, higher_is_better=False, margin=0.1, missing=Unanswered.ZERO)
    store.create(early(errors, MetricSpec("thumbs", Kind.PROPORTION, margin=0.1)))
    store.expose([exposed("u", "r1"), exposed("u", "r2", at=700.0), exposed("v", "r3")])
    store.record([outcome("r1", "error", at=600.0), outcome("r2", "error", at=701.0)])
    assert row(store, "error") == (2, 2.0, 3.0)
    assert row(store, "error@600") == (2, 1.0, 2.0)
    assert "thumbs@600" not in store.data("x", 1).buckets[0].moments
    assert store.data("x", 1).buckets[0].seconds == 25.0
