import math
from itertools import pairwise

import numpy as np
import pytest

from router.experiments.report.checks import band, evidence, ratio_of
from router.experiments.stats import sample_ratio
from tests.experiments.report.sums import bucket

WEIGHTS = {"control": 0.5, "new": 0.5}


def test_evidence_is_the_one_of_the_statistics():
    counts = np.array([[10.0, 20.0], [100.0, 130.0]])
    expected = [sample_ratio([int(a), int(b)], [0.5, 0.5]).log_evidence for a, b in counts]
    assert evidence(counts, [0.5, 0.5]) == pytest.approx(expected)


def test_a_fault_that_was_made_up_for_later_is_still_found():
    early = [bucket("control", 500, 0), bucket("new", 300, 0)]
    later = [bucket("control", 300, 0, at=1), bucket("new", 500, 0, at=1)]
    assert ratio_of(early, WEIGHTS).alarm
    found = ratio_of([*early, *later], WEIGHTS)
    assert (found.counts, found.alarm) == ((800, 800), True)
    assert found.log_evidence < 0


def test_arms_of_one_bucket_are_counted_together():
    assert not ratio_of([bucket("control", 500, 0), bucket("new", 500, 0)], WEIGHTS).alarm
    assert ratio_of([], WEIGHTS).counts == (0, 0)


def test_the_peak_before_is_kept():
    assert ratio_of([], WEIGHTS, peak=7.5).peak == 7.5


@pytest.mark.parametrize(("units", "weight"), [(100, 0.5), (5000, 0.5), (5000, 0.1)])
def test_the_band_is_where_the_alarm_begins(units, weight):
    low, high = band(units, weight)
    assert low < weight < high
    for share, inside in ((low + 1e-4, True), (low - 1e-4, False), (high - 1e-4, True), (high + 1e-4, False)):
        counts = np.array([[share * units, (1 - share) * units]])
        found = float(evidence(counts, [weight, 1 - weight])[0])
        assert (found < math.log(1000)) is inside


def test_the_band_narrows_and_is_everything_at_first():
    assert band(0, 0.5) == band(3, 0.5) == (0.0, 1.0)
    widths = [high - low for low, high in (band(n, 0.5) for n in (100, 1000, 10_000, 100_000))]
    assert all(b < a for a, b in pairwise(widths))
