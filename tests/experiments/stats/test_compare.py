"""Comparisons: intervals and p-values say the same, and which sequence is used when."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.experiments.stats import Kind, Method, Metric, Moments, Plan, compare
from router.experiments.stats.contrast import Line, relative_interval
from router.experiments.stats.estimates import Estimate

SUCCESS = Metric("success", Kind.PROPORTION)
SCORE = Metric("score", Kind.MEAN)
PLAN = Plan(units=2000)


def zeros_and_ones(ones: int, zeros: int) -> Moments:
    return Moments(ones + zeros, (float(ones),), (float(ones),))


def scores(mean: float, units: int, seed: int = 0) -> Moments:
    return Moments.of(np.random.default_rng(seed).normal(mean, 1, units))


CASES = [
    (SUCCESS, zeros_and_ones(300, 700), zeros_and_ones(400, 600)),
    (SUCCESS, zeros_and_ones(5, 60), zeros_and_ones(30, 30)),
    (SCORE, scores(0, 500), scores(0.4, 300, 1)),
]


@pytest.mark.parametrize(("metric", "control", "treatment"), CASES)
def test_p_is_alpha_for_a_difference_at_an_end_of_the_interval(metric, control, treatment):
    found = compare(metric, control, treatment, PLAN)
    for end in found.interval:
        assert compare(metric, control, treatment, PLAN, Line(offset=end)).p == pytest.approx(0.05, rel=1e-4)
    assert found.interval.low < found.effect < found.interval.high
    assert found.p < 0.05
    assert found.effect == pytest.approx(found.values[1] - found.values[0])
    assert found.relative == pytest.approx(found.effect / found.values[0])


def test_proportions_are_exact_until_burn_in():
    methods = [
        compare(SUCCESS, zeros_and_ones(*a), zeros_and_ones(*b), PLAN).method
        for a, b in (((5, 60), (30, 30)), ((4, 196), (5, 195)), ((196, 4), (195, 5)), ((100, 100), (90, 110)))
    ]
    assert methods == [Method.EXACT, Method.EXACT, Method.EXACT, Method.ASYMPTOTIC]


def test_means_have_no_interval_before_burn_in():
    found = compare(SCORE, scores(0, 99), scores(9, 500), PLAN)
    assert (found.method, found.p, found.interval) == (Method.BURN_IN, 1.0, (-math.inf, math.inf))
    assert found.relative_interval is None
    assert found.effect == pytest.approx(9, abs=0.5)


def test_nothing_is_said_where_nothing_varies():
    found = compare(SCORE, Moments.of([1.0] * 200), Moments.of([2.0] * 200), PLAN)
    assert (found.method, found.p) == (Method.BURN_IN, 1.0)
    extremes = compare(SUCCESS, zeros_and_ones(0, 200), zeros_and_ones(200, 0), PLAN)
    assert extremes.method is Method.EXACT
    assert extremes.interval.low > 0.8


def test_the_relative_interval_holds_the_ratios_that_are_not_ruled_out():
    control, treatment = Estimate(100, 2.0, 0.01), Estimate(100, 3.0, 0.02)
    low, high = relative_interval(control, treatment, 3.0)
    for edge in (low, high):
        off = 3.0 - (1 + edge) * 2.0
        assert abs(off) == pytest.approx(3.0 * math.sqrt(0.02 + (1 + edge) ** 2 * 0.01))
    assert relative_interval(Estimate(100, 0.1, 0.01), treatment, 3.0) is None


@pytest.mark.parametrize(
    ("metric", "control", "text"),
    [
        (SUCCESS, scores(0, 50), "0 or 1 for each unit"),
        (SCORE, Moments.of([1.0]), "two units"),
        (Metric("r", Kind.RATIO), scores(0, 50), "2 columns"),
        (Metric("r", Kind.RATIO), Moments.of([1.0, 2.0], [0.0, 0.0]), "denominator"),
    ],
)
def test_sums_of_another_kind_are_refused(metric, control, text):
    with pytest.raises(InvalidRequest, match=text):
        compare(metric, control, control, PLAN)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"alpha": 0.0}, "plan.alpha"),
        ({"alpha": 0.3}, "plan.alpha"),
        ({"alpha": float("nan")}, "plan.alpha"),
        ({"exact_share": 1.0}, "plan.exact_share"),
        ({"units": 100}, "plan.units"),
        ({"burn_in_units": 5}, "plan.burn_in_units"),
    ],
)
def test_plans_that_promise_nothing_are_refused(change, field):
    with pytest.raises(InvalidRequest) as caught:
        Plan(**change)
    assert caught.value.violations[0].field == field
