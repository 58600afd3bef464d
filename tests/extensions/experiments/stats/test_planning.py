"""How many units it takes: textbook sizes, and the factor that looking all the time costs."""

from __future__ import annotations

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric
from router.extensions.experiments.stats.planning import (
    fixed_size,
    planned_factors,
    size_for,
    smallest_effect,
)
from router.extensions.experiments.stats.sequences import planned_bound

SUCCESS, SCORE = ComparedMetric("success", Kind.PROPORTION), ComparedMetric("score", Kind.MEAN)


def test_the_fixed_size_is_the_textbooks():
    assert fixed_size(0.05, (0.25, 0.25)) == pytest.approx(2 * 1570, abs=2)
    assert fixed_size(-0.1, (0.09, 0.16), power=0.9) == pytest.approx(2 * 263, abs=2)
    # unequal arms, pooled under equality: Fleiss, Levin and Paik's formula by hand
    p, q, share = 0.03, 0.01, 0.1
    middle = 0.9 * p + 0.1 * q
    width = 1.959964 * np.sqrt(middle * (1 - middle) / 0.09)
    width += 0.841621 * np.sqrt(p * (1 - p) / 0.9 + q * (1 - q) / 0.1)
    found = fixed_size(q - p, (p * (1 - p), q * (1 - q)), share=share, under_equality=middle * (1 - middle))
    assert found == pytest.approx((width / 0.02) ** 2, abs=1)


@pytest.mark.parametrize(
    "given",
    [
        (0.0, (1.0, 1.0)),
        (float("nan"), (1.0, 1.0)),
        (0.1, (0.0, 0.0)),
        (0.1, (1.0, 1.0), 0.05, 0.04),
        (0.1, (1.0, 1.0), 0.05, 0.8, 1.0),
    ],
)
def test_a_size_for_nothing_is_refused(given):
    with pytest.raises(InvalidRequest):
        fixed_size(*given)


def test_sizes_follow_effect_and_split():
    small, large = (size_for(SUCCESS, 0.5, effect).units for effect in (0.05, 0.1))
    assert small == pytest.approx(4 * large, rel=0.05)
    even, canary = (size_for(SCORE, 1.0, 0.1, spread=1.0, share=s).units for s in (0.5, 0.1))
    assert canary == pytest.approx(even * 0.25 / 0.09 * 1.2 / 1.1, rel=0.02)


def test_burn_in_is_part_of_a_size():
    huge = size_for(SCORE, 1.0, 3.0, spread=1.0, share=0.05)
    assert (huge.units, huge.least) == (15_000, 15_000)
    assert huge.fixed < 100
    rare = size_for(SUCCESS, 0.001, 0.5, share=0.5, plan=SequencePlan(units=200))
    assert rare.units >= 200


def test_the_smallest_effect_is_the_one_whose_size_fits():
    found = smallest_effect(SUCCESS, 0.5, 5000)
    assert size_for(SUCCESS, 0.5, found, plan=SequencePlan(units=5000)).units <= 5000
    assert size_for(SUCCESS, 0.5, 0.97 * found, plan=SequencePlan(units=5000)).units > 5000
    assert smallest_effect(SCORE, 0.0, 1000, spread=1.0, share=0.05) is None
    assert smallest_effect(SUCCESS, 1.0, 5000) is None


def test_what_cannot_be_sized_is_refused():
    with pytest.raises(InvalidRequest, match="lies within 0 and 1"):
        size_for(SUCCESS, 0.9, 0.2)
    with pytest.raises(InvalidRequest, match="how much do units differ"):
        size_for(SCORE, 0.9, 0.2)


def test_a_planned_experiment_takes_a_sixteenth_more_than_one_look():
    half, most = planned_factors(0.05, 0.8)
    assert (half, most) == pytest.approx((0.764, 1.057), abs=0.001)
    assert planned_factors(0.045, 0.8, fixed_alpha=0.05)[1] == pytest.approx(1.090, abs=0.001)


def test_simulated_experiments_have_their_verdict_by_the_planned_size():
    """Brownian motion with the drift that a fixed test finds with 80 % power, at 500 looks."""
    half, most = planned_factors(0.05, 0.8)
    rng = np.random.default_rng(8)
    part = np.arange(1, 501) / 500
    steps = rng.standard_normal((4000, 500)) * np.sqrt(most / 500)
    z = (steps.cumsum(axis=1) + 2.8016 * most * part) / np.sqrt(most * part)
    shown = z >= planned_bound(part, 0.05)
    first = np.where(shown.any(axis=1), most * part[shown.argmax(axis=1)], np.inf)
    assert shown.any(axis=1).mean() == pytest.approx(0.8, abs=0.025)
    assert np.median(first) == pytest.approx(half, abs=0.03)


@pytest.mark.parametrize("given", [(0.0, 0.8), (0.05, 0.05), (0.05, 1.0), (0.05, 0.8, 0.9)])
def test_a_planned_size_for_nothing_is_refused(given):
    with pytest.raises(InvalidRequest):
        planned_factors(*given)
