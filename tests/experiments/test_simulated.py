"""Outcomes of units that never were: at their rate, and summed as the store would."""

import math

import numpy as np
import pytest

from router.experiments.model import Aggregate, Kind, MetricSpec
from router.experiments.self_test import Drawn, moments, powers
from router.experiments.stats import Moments

SECONDS = MetricSpec("seconds", Kind.MEAN, aggregate=Aggregate.SUM, covariate=True)


def test_a_proportion_at_its_rate():
    (values,) = Drawn.of(MetricSpec("solved", Kind.PROPORTION), 0.05).values(20_000, 1)
    assert set(values) == {0.0, 1.0}
    assert values.mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("rate", [None, 0.0, 1.0, math.nan])
def test_a_rate_that_tells_nothing_is_the_usual_one(rate):
    assert Drawn.of(MetricSpec("solved", Kind.PROPORTION), rate).mean == 0.3


def test_a_mean_with_its_deviation():
    (values,) = Drawn.of(SECONDS, 12.0, 9.0).values(200_000, 1)
    assert values.min() > 0
    assert (values.mean(), values.std()) == (pytest.approx(12, rel=0.02), pytest.approx(9, rel=0.05))
    assert Drawn.of(SECONDS).metric.columns == 1


@pytest.mark.parametrize("known", [(None, 1.0), (1.0, None), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0)])
def test_what_is_no_log_normal_has_the_usual_values(known):
    assert Drawn.of(SECONDS, *known) == Drawn(SECONDS, 1.0, 1.0)


@pytest.mark.parametrize("per", ["responses", "sessions"])
def test_a_ratio_has_a_denominator(per):
    drawn = Drawn.of(MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per=per), 2.0, 1.0)
    above, below = drawn.values(50_000, 1)
    assert below.min() > 0
    assert above.sum() / below.sum() == pytest.approx(2, rel=0.03)
    assert np.array_equal(below, below.round()) == (per == "responses")


def test_values_count_within_their_cap():
    drawn = Drawn.of(MetricSpec("seconds", Kind.MEAN, aggregate=Aggregate.SUM, cap=2.0, least=0.5))
    counted = drawn.counted(drawn.values(1000, 1))
    assert (counted.min(), counted.max()) == (0.5, 2.0)


def test_powers_are_the_sums_that_moments_have():
    columns = np.array([[1.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    found = moments(powers(columns).sum(axis=0), 2)
    assert found == Moments.of(*columns)
