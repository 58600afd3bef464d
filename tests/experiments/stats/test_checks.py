"""The sequential sample-ratio test: its formula, few false alarms, and faults found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.experiments.stats.checks import arm_term, maturity, missing_outcomes, sample_ratio, total_term

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("counts", "weights"),
    [((0, 0), (0.5, 0.5)), ((5200, 4800), (0.5, 0.5)), ((90, 8, 30), (0.7, 0.1, 0.2))],
)
def test_it_is_dirichlet_multinomial_over_multinomial(counts, weights):
    total = sum(counts)
    mixed = stats.dirichlet_multinomial.logpmf(counts, 100 * np.array(weights), total)
    expected = mixed - stats.multinomial.logpmf(counts, total, weights)
    assert sample_ratio(counts, weights).log_evidence == pytest.approx(expected, abs=1e-6)


def first_alarms(share: float, runs: int, exposures: int) -> np.ndarray:
    ones = (np.random.default_rng(5).random((runs, exposures)) < share).cumsum(axis=1)
    arm, seen = arm_term(np.arange(exposures + 1.0), 0.5), np.arange(1, exposures + 1)
    reached = arm[ones] + arm[seen - ones] - total_term(seen) >= math.log(1000)
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def test_a_fault_of_two_points_is_found_and_a_sound_split_is_not_accused():
    assert np.quantile(first_alarms(0.52, 60, 40_000), 0.95, method="inverted_cdf") < 40_000
    assert np.isinf(first_alarms(0.5, 150, 20_000)).all()


def test_an_alarm_stays():
    bad = sample_ratio((300, 100), (0.5, 0.5))
    assert bad.alarm
    assert bad.p < 0.001
    later = sample_ratio((20_100, 19_900), (0.5, 0.5), peak=bad.peak)
    assert later.alarm
    assert later.log_evidence < 0
    assert not sample_ratio((20_100, 19_900), (0.5, 0.5)).alarm


@pytest.mark.parametrize(
    ("counts", "weights", "text"),
    [
        ((1, 2), (0.5, 0.3, 0.2), "as many counts"),
        ((1, -2), (0.5, 0.5), "negative"),
        ((1, 2), (0.5, 0.6), "sum to 1"),
        ((1, 2), (1.0, 0.0), "above 0"),
        ((), (), "counts"),
    ],
)
def test_bad_counts_are_refused(counts, weights, text):
    with pytest.raises(InvalidRequest, match=text):
        sample_ratio(counts, weights)


def test_missing_outcomes():
    assert missing_outcomes((10_000, 9000), (10_000, 8000)).alarm
    assert missing_outcomes((10_000, 8000), (10_000, 9000)).alarm
    assert not missing_outcomes((10_000, 9000), (10_000, 8950)).alarm
    assert not missing_outcomes((10, 9), (10, 8)).alarm
    assert not missing_outcomes((0, 0), (0, 0)).alarm
    found = missing_outcomes((10_000, 9000), (10_000, 8000))
    assert (found.control, found.treatment) == (0.1, 0.2)
    assert found.low < 0.1 < found.high
    with pytest.raises(InvalidRequest, match="control"):
        missing_outcomes((5, 6), (5, 5))


def test_maturity_counts_whole_buckets():
    found = maturity([(3600.0, 10), (7200.0, 30), (10_800.0, 60)], now=9000.0, window=1800.0)
    assert (found.matured, found.exposed, found.share) == (40, 100, 0.4)
    assert maturity([], 0.0, 10.0).share == 0
    with pytest.raises(InvalidRequest, match="window"):
        maturity([], 0.0, -1.0)
