"""Clopper-Pearson against its textbook values, its definition and an independent computation."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.certify import binomial_tail, binomial_tails, rows_needed, upper_bound

RATES = st.floats(0.001, 0.999)


@pytest.mark.parametrize(
    ("errors", "count", "delta", "bound"),
    [
        # scipy.stats.beta.ppf(1 - delta, errors + 1, count - errors), SciPy 1.16
        (0, 59, 0.05, 0.04950761),
        (0, 1, 0.05, 0.95),
        (1, 93, 0.05, 0.04999398),
        (5, 100, 0.05, 0.10225338),
        (3, 50, 0.1, 0.12875642),
        (50, 1000, 0.05, 0.0628634),
        (500, 100_000, 0.05, 0.00538273),
    ],
)
def test_known_values(errors: int, count: int, delta: float, bound: float) -> None:
    assert upper_bound(errors, count, delta) == pytest.approx(bound, abs=1e-8)


@given(st.integers(0, 40), st.integers(1, 40), RATES)
def test_the_tail_is_the_exact_sum(errors: int, count: int, rate: float) -> None:
    exact = Fraction(rate)
    total = sum(comb(count, k) * exact**k * (1 - exact) ** (count - k) for k in range(min(errors, count) + 1))
    assert binomial_tail(errors, count, rate) == pytest.approx(float(total), rel=1e-9, abs=1e-300)


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_bound_lies_where_the_tail_is_delta(errors: int, count: int, delta: float) -> None:
    bound = upper_bound(min(errors, count), count, delta)
    assert min(errors, count) / count <= bound <= 1
    if errors < count:
        assert binomial_tail(errors, count, bound) == pytest.approx(delta, rel=1e-6)


@given(st.integers(0, 200), st.integers(1, 200))
def test_more_errors_bound_higher_and_more_requests_lower(errors: int, more: int) -> None:
    count = errors + more
    bound = upper_bound(errors, count, 0.05)
    assert upper_bound(errors + 1, count, 0.05) >= bound
    assert upper_bound(errors, count + 1, 0.05) <= bound
    assert upper_bound(errors, count, 0.1) <= bound


def test_how_many_are_needed() -> None:
    assert [rows_needed(0.05, 0.05, errors) for errors in range(4)] == [59, 93, 124, 153]
    assert rows_needed(0.01, 0.05) == 299


@given(st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.integers(0, 10))
def test_what_is_needed_is_enough_and_one_less_is_not(target: float, delta: float, errors: int) -> None:
    count = rows_needed(target, delta, errors)
    assert upper_bound(errors, count, delta) <= target + 1e-12
    assert upper_bound(errors, count - 1, delta) > target


def test_nothing_seen_and_all_wrong() -> None:
    assert upper_bound(0, 0, 0.05) == upper_bound(7, 7, 0.05) == 1.0
    assert binomial_tails(20, 0.3).tolist() == pytest.approx([binomial_tail(k, 20, 0.3) for k in range(21)])
