"""Holm, missing outcomes, maturity, equal length, metrics."""

from __future__ import annotations

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.experiments.stats import (
    Kind,
    Metric,
    Moments,
    Plan,
    holm,
    length_adjusted,
    maturity,
    missing_outcomes,
)


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with pytest.raises(InvalidRequest, match=r"p_values\[b\]"):
        holm({"a": 0.1, "b": 1.1})


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
    with pytest.raises(InvalidRequest, match="tolerated"):
        missing_outcomes((5, 5), (5, 5), tolerated=0.0)


def test_maturity_counts_whole_buckets():
    found = maturity([(3600.0, 10), (7200.0, 30), (10_800.0, 60)], now=9000.0, window=1800.0)
    assert (found.matured, found.exposed, found.share) == (40, 100, 0.4)
    assert maturity([], 0.0, 10.0).share == 0
    with pytest.raises(InvalidRequest, match="window"):
        maturity([], 0.0, -1.0)


def test_lengths_that_differ_explain_an_effect():
    rng = np.random.default_rng(0)
    arms = []
    for longer in (0, 30):
        length = rng.normal(100 + longer, 15, 2000)
        arms.append(Moments.of(0.01 * length + rng.normal(size=2000), length))
    found = length_adjusted(*arms, Plan())
    assert found.raw == pytest.approx(0.3, abs=0.1)
    assert abs(found.adjusted) < found.half < 0.3
    with pytest.raises(InvalidRequest, match="length"):
        length_adjusted(Moments.empty(2), arms[1], Plan())


def test_equal_lengths_change_nothing():
    flat = [Moments.of(np.arange(10.0) + shift, np.full(10, 7.0)) for shift in (0, 1)]
    found = length_adjusted(*flat, Plan())
    assert found.raw == found.adjusted == 1


def test_a_metric_knows_its_columns():
    assert [Metric("m", k, covariate=c).columns for k in (Kind.MEAN, Kind.RATIO) for c in (False, True)] == [
        1,
        2,
        2,
        4,
    ]
    with pytest.raises(InvalidRequest, match="empty"):
        Metric("", Kind.MEAN)
