"""Quantiles of two arms: evidence, intervals, and small versions of the simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.experiment_truth.quantiles import SHAPES, found_by_quantile, looked, wrong
from router.experiments.stats.compare import SequencePlan
from router.experiments.stats.quantiles import (
    EDGES,
    QuantilePair,
    alternatives,
    bins_up_to,
    compare_quantiles,
    own_range,
    quantile_of,
)
from router.experiments.stats.sequences import Line
from router.experiments.times import BINS, bin_of

PLAN = SequencePlan()


def counts(*seconds: float) -> np.ndarray:
    return np.bincount([bin_of(one) for one in seconds], minlength=BINS).astype(np.float64)


def pair(factor: float, units: int = 2_000, level: float = 0.95, plan: SequencePlan = PLAN) -> QuantilePair:
    rng = np.random.default_rng(3)
    times = [rng.lognormal(0, 0.7, units // 2) * longer for longer in (1.0, factor)]
    return QuantilePair(level, counts(*times[0]), counts(*times[1]), plan)


@given(st.floats(1e-6, 1e5))
def test_a_time_lies_in_the_bin_that_ends_at_or_above_it(seconds: float) -> None:
    place = bin_of(seconds)
    assert place == bins_up_to(seconds) - 1
    assert seconds <= EDGES[place] * (1 + 1e-9)
    assert place == 0 or seconds > EDGES[place - 1] * (1 - 1e-9)


def test_nine_bins_are_a_fifth_so_that_a_margin_of_20_percent_loses_nothing() -> None:
    assert (bins_up_to(1.2 * EDGES[:-10]) - bins_up_to(EDGES[:-10]) == 9).all()


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_a_quantile_is_within_a_bin_of_the_samples(level: float) -> None:
    times = np.random.default_rng(1).lognormal(0, 1, 999)
    below = np.concatenate([[0.0], counts(*times).cumsum()])
    assert float(quantile_of(level, below)) == pytest.approx(float(np.quantile(times, level)), rel=0.03)


def test_alternatives_are_a_mixture() -> None:
    """Weights add up to 1, and under the level itself each ratio has a mean of 1."""
    found = alternatives(0.95, 0.9, 5000)
    assert np.exp(found.weight).sum() == pytest.approx(1)
    for rate in (found.first, found.second):
        mean = 0.95 * rate / 0.95 + 0.05 * (1 - rate) / 0.05
        assert mean == pytest.approx(np.ones(len(rate)))


def test_evidence_falls_the_larger_the_claim() -> None:
    both = pair(1.5)
    found = [float(both.evidence(Line(scale=scale))) for scale in (0.8, 1.0, 1.2, 1.4, 1.6)]
    assert found == sorted(found, reverse=True)
    assert found[0] > math.log(20) > found[-1]


def test_both_sides_are_one_test_with_the_arms_exchanged() -> None:
    both = pair(1.5)
    turned = QuantilePair(0.95, both.treatment, both.control, replace(PLAN, share=1 - PLAN.share))
    assert float(turned.evidence(Line(scale=1 / 1.2), -1)) == pytest.approx(
        float(both.evidence(Line(scale=1.2), 1))
    )


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_intervals_have_the_truth_and_the_estimate(level: float) -> None:
    found = compare_quantiles("total_time_p95", pair(1.5, 4_000, level))
    assert found.interval.low <= found.effect <= found.interval.high
    assert found.relative_interval is not None
    assert found.relative is not None
    assert found.relative_interval.low <= 0.5 <= found.relative_interval.high
    assert found.relative_interval.low > 0
    assert found.p < 0.05
    assert found.ranges is not None
    for value, (low, high) in zip(found.values, found.ranges, strict=True):
        assert low < value <= high


def test_before_there_is_enough_it_says_how_many_are_missing() -> None:
    found = compare_quantiles("total_time_p95", pair(1.0, 40))
    assert found.interval == (-math.inf, math.inf)
    assert found.relative_interval is None
    assert found.waiting is not None
    assert found.waiting.units
    assert "20 units with total_time_p95 in the smaller arm" in found.waiting.text


def test_times_beyond_the_grid_bound_nothing_above() -> None:
    every = counts(*[5_000.0] * 500)
    low, high = own_range(0.5, np.concatenate([[0.0], every.cumsum()]), 500, 0.05)
    assert low == EDGES[-2]
    assert high == math.inf


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "share"), [("four values", 0.5), ("log-normal 1", 0.05)])
def test_nothing_is_shown_that_is_not_so(shape: str, share: float) -> None:
    assert wrong(shape, share, 0.95, 40, 6).worst <= 0.05


def test_requests_taken_for_units_and_looked_at_often_are_wrong() -> None:
    """Why this is not the test that dashboards make."""
    rng = np.random.default_rng(2)
    draw = SHAPES["1 to 50 requests a unit"]
    assert sum(looked(draw, 1.0, 0.5, rng, 0.95).usual > 1.96 for _ in range(5)) >= 3


@pytest.mark.slow
def test_ten_fold_times_at_95_5_stop_within_300_units() -> None:
    assert np.quantile(found_by_quantile(0.95, 10.0, 0.05, 20, 1), 0.8) <= 300
