"""The planned bound along looks: what is shown, by which interval, and how often without an effect."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.experiment_simulation import Source, capped, looks, proportion, ratio, skewed
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.stats.planned import (
    Clock,
    Looks,
    PlannedPair,
    better_end,
    found_by_plan,
    looks_bound,
    looks_evidence,
)
from router.extensions.experiments.stats.sequences import EQUAL, Line

BY_HALF = 2.2414  # |z| at the planned size, alpha 0.05


def clock(parts: object, answering: float = 1.0) -> Clock:
    """Of parts of 10,000 planned units, of which some have a value."""
    units = 10_000 * np.asarray(parts, np.float64)
    return Clock.of(answering * units, units, 10_000)


def at(*parts: float) -> np.ndarray:
    return looks_bound(clock(parts), 0.05)


def test_a_single_look_past_the_plan_is_a_fixed_test():
    assert at(1.3) == pytest.approx(1.96, abs=1e-3)


def test_a_look_past_the_plan_spends_what_is_left():
    """The later the look before it, the less is left; behind it there is nothing."""
    bounds = [at(before, 1.05)[1] for before in (0.5, 0.8, 0.95, 0.999)]
    assert bounds == sorted(bounds)
    assert 1.96 < bounds[0] < BY_HALF < bounds[-1]
    assert np.isinf(at(0.5, 1.0, 1.2)[2])
    assert np.isinf(at(0.5, 1.1, 1.2)[2])


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01])
def test_evidence_is_one_over_alpha_at_the_bound(alpha):
    parts = np.array([[0.2, 0.7, 1.1, 1.3], [0.5, 0.9, 1.0, 1.2]])
    bound = looks_bound(clock(parts), alpha)
    known = bound < 9
    found = looks_evidence(np.where(known, bound, 9.0), clock(parts))
    np.testing.assert_allclose(found[known], -np.log(alpha), rtol=1e-6)
    assert not found[~known].any()


@pytest.mark.parametrize("parts", [(0.3, 0.6, 0.9, 1.2), (0.97, 1.4), tuple(np.arange(1, 40) / 37.5)])
def test_brownian_motion_is_called_as_rarely_as_promised_past_the_plan_too(parts):
    rng = np.random.default_rng(5)
    part = np.array(parts)
    z = (rng.standard_normal((20_000, len(part))) * np.sqrt(np.diff(part, prepend=0))).cumsum(axis=1)
    shown = np.abs(z / np.sqrt(part)) >= looks_bound(clock(part), 0.05)
    assert 0.02 < shown.any(axis=1).mean() < 0.053


def arms_of(source: Source, units: int = 6000, every: int = 200, seed: int = 4) -> Looks:
    """One experiment at its looks."""
    both = looks(source, np.random.default_rng(seed), 1, units, every=every)
    first, second = (
        Moments(
            arm.n[0],
            *(tuple(np.asarray(x)[0] for x in sums) for sums in (arm.sums, arm.products, arm.cubes)),
        )
        for arm in both
    )
    return Looks(first, second, (first.n, second.n))


SOURCES = (proportion(0.3, 0.06), skewed(0.2), ratio(0.06), capped(skewed(0.2), 3.0))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("offset", [0.0, -0.05])
def test_the_interval_and_the_evidence_agree_at_every_look(source, offset):
    plan = SequencePlan(units=4000)
    arms = PlannedPair(source.metric, *arms_of(source)[:2], plan)
    low, high = arms.bounds()
    shown = np.asarray(arms.evidence(Line(offset=offset))) >= -np.log(plan.alpha) - 1e-9
    left_out = (low > offset) | (high < offset)
    near = np.minimum(np.abs(low - offset), np.abs(high - offset)) < 1e-6
    assert ((shown == left_out) | near).all()
    assert shown.any()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_what_was_shown_by_the_planned_size_stays_whatever_comes_later(source):
    plan, whole = SequencePlan(units=4000), arms_of(source)
    found = [found_by_plan(source.metric, until(whole, end), plan, EQUAL, 1) for end in range(1, 31)]
    ps, edges = [one.p for one in found], [one.edge for one in found]
    assert ps == sorted(ps, reverse=True)
    assert len(set(ps[19:])) == len(set(edges[19:])) == 1
    assert [one.reached for one in found] == [False] * 19 + [True] * 11
    assert found[-1].p <= 0.05
    assert found[-1].edge > 0
    assert len({one.relative_edge for one in found[19:]}) == 1


def until(whole: Looks, end: int) -> Looks:
    return Looks(
        cut(whole.control, end),
        cut(whole.treatment, end),
        (whole.exposed[0][:end], whole.exposed[1][:end]),
    )


def cut(sums: Moments, end: int) -> Moments:
    return Moments(
        sums.n[:end],
        *(tuple(x[:end] for x in of) for of in (sums.sums, sums.products, sums.cubes)),
    )


def test_only_the_side_that_is_asked_about_is_shown():
    source = proportion(0.3, 0.06)
    above, below = (
        found_by_plan(source.metric, arms_of(source), SequencePlan(units=4000), EQUAL, side)
        for side in (1, -1)
    )
    assert above.p < 0.05
    assert below.p > 0.5


def test_an_interval_gets_its_better_end_from_whichever_shows_more():
    always = (-0.01, 0.09)
    assert better_end(1, always, 0.01, 0.04) == (0.01, 0.09)
    assert better_end(1, always, -0.03, 0.04) == (-0.01, 0.09)
    assert better_end(1, always, 0.05, 0.04) == (0.04, 0.09)
    assert better_end(-1, always, 0.05, 0.04) == (-0.01, 0.05)


def test_of_rates_the_weaker_of_likelihood_ratio_and_score_counts():
    """No event in a small arm: the likelihood ratio alone would show that it is lower."""
    control, treatment = one_look(1758, 42), one_look(200, 0)
    metric = ComparedMetric("errors", Kind.PROPORTION)
    pair = PlannedPair(metric, control, treatment, SequencePlan(units=2001))
    rate = 42 / 2000
    score = -(42 / 1800) / np.sqrt(rate * (1 - rate) * (1 / 1800 + 1 / 200))
    deviance = float(pair.rates.deviance(pair.rates.against())[0])
    assert deviance < -BY_HALF < score == pytest.approx(float(pair.z()[0]))
    assert float(pair.evidence()[0]) < -np.log(0.05)


def one_look(zeros: int, ones: int) -> Moments:
    n, s = np.array([float(zeros + ones)]), np.array([float(ones)])
    return Moments(n, (s,), (s,))


def test_there_is_none_before_the_asymptotic_sequence_begins():
    source = skewed(0.5)
    for least, shown in ((100, True), (2100, False)):
        plan = SequencePlan(units=4000, unbounded_units=least)
        assert (found_by_plan(source.metric, arms_of(source, 4000), plan, EQUAL, 1).p < 0.05) is shown


SHARES = (0.04, 0.1, 0.3, 1.0)


@pytest.mark.parametrize("answering", SHARES)
def test_the_last_look_spends_what_is_left_however_few_units_have_a_value(answering):
    parts = (0.25, 0.5, 0.75, 1.0)
    bound = looks_bound(clock(parts, answering), 0.05)
    assert 1.96 < bound[-1] < BY_HALF
    assert (np.diff(bound) < 0).all()


def test_a_look_with_more_values_than_were_projected_is_left_for_the_last():
    units = np.array([2000, 5000, 9000, 10_000])
    bound = looks_bound(Clock.of(np.array([200, 900, 1800, 2000]), units, 10_000), 0.05)
    assert np.isinf(bound[1:3]).all()
    assert bound[-1] == pytest.approx(1.96, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("late", [1.0, 4.0, 0.25])
@pytest.mark.parametrize("answering", SHARES[:3])
def test_arms_alike_are_called_as_rarely_as_promised_however_answers_come(answering, late):
    """The share with a value is another in the second half: as it was, four times, a quarter."""
    rng, looks_, units = np.random.default_rng(3), 40, 40_000
    share = np.where(np.arange(1, looks_ + 1) > looks_ / 2, answering * min(late, 1 / answering), answering)
    values = rng.binomial(units // looks_, share, (2000, looks_)).cumsum(axis=1).astype(np.float64)
    steps = np.sqrt(np.diff(values, prepend=0.0, axis=1))
    z = (rng.standard_normal(values.shape) * steps).cumsum(axis=1) / np.sqrt(np.maximum(values, 1))
    there = np.linspace(units / looks_, units, looks_)
    shown = np.abs(z) >= looks_bound(Clock.of(values, there, units), 0.05)
    assert 0.03 < shown.any(axis=1).mean() < 0.06
