"""Sums kept up to date row by row say what the whole columns say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.moments import ComparedMetric, Moments

ROWS = st.lists(st.tuples(*[st.integers(-1000, 1000)] * 3), min_size=3, max_size=30)


@given(ROWS, st.data())
def test_any_way_of_adding_up_gives_the_same(rows, data):
    whole = Moments.of(*zip(*rows, strict=True))
    at = data.draw(st.integers(1, len(rows) - 1))
    parts = [Moments.of(*zip(*part, strict=True)) for part in (rows[:at], rows[at:])]
    assert parts[0].merge(parts[1]) == whole
    one_by_one = Moments.empty(3)
    for row in rows:
        one_by_one = one_by_one.merge(Moments.of(*([value] for value in row)))
    assert one_by_one == whole


def test_means_and_covariances_are_numpys():
    columns = np.random.default_rng(0).lognormal(size=(3, 200)) * [[1], [40], [1000]]
    moments = Moments.of(*columns)
    expected = np.cov(columns)
    for i in range(3):
        assert moments.mean(i) == pytest.approx(columns[i].mean())
        for j in range(3):
            assert moments.covariance(i, j) == pytest.approx(expected[i, j])
    weights = np.array([1.0, -2.0, 0.5])
    assert moments.form(dict(enumerate(weights)), {1: 3.0}) == pytest.approx(3 * weights @ expected[:, 1])


def test_digits_survive_a_large_mean():
    values = 1e5 + np.random.default_rng(0).normal(size=1000)
    assert Moments.of(values).covariance() == pytest.approx(values.var(ddof=1), rel=1e-4)


def test_a_constant_column_has_no_negative_variance():
    assert Moments.of([0.1] * 7).covariance() == pytest.approx(0, abs=1e-15)
    assert Moments.of([0.1] * 7).covariance() >= 0


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (([1.0, float("nan")],), "finite"),
        (([1.0, float("inf")],), "finite"),
        (([1.0, 2.0], [1.0]), "one number for each unit"),
        ((), "one number for each unit"),
    ],
)
def test_bad_columns_are_refused(columns, text):
    with pytest.raises(InvalidRequest, match=text):
        Moments.of(*columns)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(InvalidRequest, match="cannot be merged"):
        Moments.empty(1).merge(Moments.empty(2))
    with pytest.raises(InvalidRequest, match="pair"):
        Moments(1, (1.0, 2.0), (1.0,))


def test_a_metric_knows_its_columns():
    assert [
        ComparedMetric("m", k, covariate=c).columns for k in (Kind.MEAN, Kind.RATIO) for c in (False, True)
    ] == [
        1,
        2,
        2,
        4,
    ]
    with pytest.raises(InvalidRequest, match="empty"):
        ComparedMetric("", Kind.MEAN)
