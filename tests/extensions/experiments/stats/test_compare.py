"""Comparisons: intervals and p-values say the same, and which sequence is used when."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.compare import ArmPair, Method, SequencePlan, compare, holm
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.stats.sequences import Line

SUCCESS = ComparedMetric("success", Kind.PROPORTION)
SCORE = ComparedMetric("score", Kind.MEAN)
PLAN = SequencePlan(units=2000)


def zeros_and_ones(ones: int, zeros: int) -> Moments:
    return Moments(ones + zeros, (float(ones),), (float(ones),))


def scores(mean: float, units: int, seed: int = 0) -> Moments:
    return Moments.of(np.random.default_rng(seed).normal(mean, 1, units))


CAPPED = ComparedMetric("score", Kind.MEAN, bounds=(-3.0, 3.0))


def capped(mean: float, units: int, seed: int = 0) -> Moments:
    return Moments.of(np.random.default_rng(seed).normal(mean, 1, units).clip(-3, 3))


CASES = [
    (SUCCESS, zeros_and_ones(300, 700), zeros_and_ones(400, 600)),
    (SUCCESS, zeros_and_ones(5, 60), zeros_and_ones(30, 30)),
    (SUCCESS, zeros_and_ones(90, 8910), zeros_and_ones(28, 972)),
    (SCORE, scores(0.5, 1500), scores(0.9, 800, 1)),
    (CAPPED, capped(0, 150), capped(0.8, 110, 1)),
    (CAPPED, capped(-1, 50), capped(1.9, 60, 1)),
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
    assert (found.waiting is None) == (found.method is Method.ASYMPTOTIC)


def test_proportions_are_exact_until_burn_in():
    methods = [
        compare(SUCCESS, zeros_and_ones(*a), zeros_and_ones(*b), PLAN).method
        for a, b in (((5, 60), (30, 30)), ((4, 196), (5, 195)), ((196, 4), (195, 5)), ((100, 100), (90, 110)))
    ]
    assert methods == [Method.EXACT, Method.EXACT, Method.EXACT, Method.ASYMPTOTIC]


def test_means_have_no_interval_before_burn_in():
    found = compare(SCORE, scores(0, 749), scores(9, 1498), PLAN)
    assert found.waiting is not None
    assert (found.waiting.rule, found.waiting.units) == ("too-few-units", 3)
    assert "nothing caps score" in found.waiting.text
    assert (found.method, found.p, found.interval) == (Method.BURN_IN, 1.0, (-math.inf, math.inf))
    assert found.relative_interval is None
    assert found.effect == pytest.approx(9, abs=0.5)


def test_nothing_is_said_where_nothing_varies():
    found = compare(SCORE, Moments.of([1.0] * 200), Moments.of([2.0] * 200), PLAN)
    assert (found.method, found.p) == (Method.BURN_IN, 1.0)
    extremes = compare(SUCCESS, zeros_and_ones(0, 200), zeros_and_ones(200, 0), PLAN)
    assert extremes.method is Method.EXACT
    assert extremes.interval.low > 0.8


def test_no_relative_effect_where_control_may_be_nothing():
    far, near = scores(9, 1500), scores(0.05, 1500, 1)
    assert compare(SCORE, far, scores(9.5, 1500, 2), PLAN).relative_interval is not None
    assert compare(SCORE, near, scores(0.5, 1500, 2), PLAN).relative_interval is None
    few = compare(SUCCESS, zeros_and_ones(0, 1000), zeros_and_ones(30, 970), PLAN)
    assert (few.relative, few.relative_interval) == (None, None)


@pytest.mark.parametrize(("metric", "control", "treatment"), CASES)
def test_p_is_alpha_for_a_share_at_an_end_of_the_relative_interval(metric, control, treatment):
    found = compare(metric, control, treatment, PLAN)
    assert (found.relative_interval is None) == (found.method is Method.EXACT or metric is CAPPED)
    for end in found.relative_interval or ():
        line = Line(scale=1 + end)
        assert compare(metric, control, treatment, PLAN, line).p == pytest.approx(0.05, rel=1e-3)


def test_a_small_arm_without_an_event_is_not_sure_of_anything():
    """14 of 900 against none of 100: Fisher's exact test gives 0.38, by its own variance it was 0.024."""
    found = compare(SUCCESS, zeros_and_ones(14, 886), zeros_and_ones(0, 100), SequencePlan(units=1000))
    assert found.p > 0.3
    assert found.interval.low < -0.015 < 0 < found.interval.high


def test_arms_of_unlike_shape_are_not_compared_until_enough_units_make_up_the_difference():
    rng = np.random.default_rng(3)
    smooth, broken = rng.normal(1.25, 0.3, 1000), rng.normal(1.0, 0.3, 1000)
    broken[:5] += 50
    found = compare(SCORE, Moments.of(smooth), Moments.of(broken), PLAN)
    assert (found.method, found.p, found.waiting.rule) == (Method.BURN_IN, 1.0, "tail")
    assert "set a cap in a new phase" in found.waiting.text
    assert "near 8.75 (mean and 3 standard deviations)" in found.waiting.text
    assert found.waiting.units is None  # more of them show a heavier tail
    broken[:30] = 51
    smooth, broken = np.tile(smooth, 4), np.tile(broken, 4)
    assert compare(SCORE, Moments.of(smooth), Moments.of(broken), PLAN).method is Method.ASYMPTOTIC


def test_too_few_events_are_told_with_the_units_that_bring_them():
    found = compare(SUCCESS, zeros_and_ones(8, 9492), zeros_and_ones(2, 498), PLAN)
    assert (found.method, found.waiting.rule) == (Method.EXACT, "too-few-events")
    assert found.waiting.text == "success is 1 for 10 units of both arms, 20 are needed"
    assert found.waiting.units == 10_000
    assert "10,000 more units" in found.waiting.words


def test_sums_without_third_powers_give_no_interval():
    plain = Moments(900, (900.0,), (1800.0,))
    found = compare(SCORE, plain, plain, PLAN)
    assert (found.p, found.waiting.rule, found.waiting.units) == (1.0, "tail", None)


@pytest.mark.parametrize("line", [Line(), Line(offset=0.3), Line(scale=1.2)])
@pytest.mark.parametrize(("metric", "control", "treatment"), CASES)
def test_only_the_side_that_is_seen_can_be_shown(metric, control, treatment, line):
    arms = ArmPair(metric, control, treatment, PLAN)
    above, below = (float(arms.evidence(line, side)) for side in (1, -1))
    assert min(above, below) <= 0
    if max(above, below) > 0:
        assert (above > below) == (float(arms.z(line)) > 0)


@pytest.mark.parametrize(
    ("metric", "control", "text"),
    [
        (SUCCESS, scores(0, 50), "0 or 1 for each unit"),
        (SCORE, Moments.of([1.0]), "two units"),
        (ComparedMetric("r", Kind.RATIO), scores(0, 50), "2 columns"),
        (ComparedMetric("r", Kind.RATIO), Moments.of([1.0, 2.0], [0.0, 0.0]), "denominator"),
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
        SequencePlan(**change)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("metric", [SCORE, CAPPED])
def test_a_constant_is_told_as_one(metric):
    same = Moments.of([1.0] * 900)
    found = compare(metric, same, same, PLAN)
    assert found.p == 1
    assert (found.waiting.rule, found.waiting.units) == ("constant", None)
    assert "same value for every unit" in found.waiting.words


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with pytest.raises(InvalidRequest, match=r"p_values\[b\]"):
        holm({"a": 0.1, "b": 1.1})
