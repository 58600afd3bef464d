"""Exact sequences for proportions: against scipy, and error rates with a look at every outcome."""

from __future__ import annotations

import numpy as np
import pytest

from router.experiments.stats import Line
from router.experiments.stats import sequences as exact

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("s", "f", "p"), [(0, 5, 0.3), (7, 3, 0.5), (120, 4000, 0.02)])
def test_one_arm_is_beta_binomial_over_binomial(s, f, p):
    expected = stats.betabinom.logpmf(s, s + f, 0.5, 0.5) - stats.binom.logpmf(s, s + f, p)
    assert float(exact.one_arm(s, f, p)) == pytest.approx(expected)


def test_rates_that_cannot_be_have_infinite_evidence():
    assert exact.one_arm(3, 4, 0.0) == np.inf
    assert exact.one_arm(3, 4, 1.0) == np.inf
    assert exact.one_arm(0, 4, 0.0) < 0
    assert exact.two_arms((1, 2), (2, 1), Line(offset=1.5)) == np.inf


@pytest.mark.parametrize(("s", "f"), [(0, 0), (0, 20), (20, 0), (7, 13), (50, 950)])
def test_the_interval_of_one_arm_ends_where_evidence_does(s, f):
    low, high = exact.one_arm_interval(s, f)
    assert 0 <= low < high <= 1
    for edge in {low, high} - {0.0, 1.0}:
        assert float(exact.one_arm(s, f, edge)) == pytest.approx(np.log(20), abs=1e-6)


@pytest.mark.parametrize(
    "line", [Line(), Line(offset=0.1), Line(offset=-0.2), Line(scale=1.1), Line(0.9, 0.01)]
)
def test_two_arms_is_the_least_over_all_rates_on_the_line(line):
    control, treatment = (30, 70), (45, 55)
    grid = np.linspace(1e-5, 1 - 1e-5, 200_001)
    on = line.scale * grid + line.offset
    inside = (on > 0) & (on < 1)
    total = exact.one_arm(*control, grid[inside]) + exact.one_arm(*treatment, on[inside])
    assert float(exact.two_arms(control, treatment, line)) == pytest.approx(total.min(), abs=1e-5)


@pytest.mark.parametrize(
    "counts", [((0, 0), (0, 0)), ((0, 20), (15, 5)), ((50, 50), (60, 40)), ((3, 997), (9, 991))]
)
def test_the_interval_of_a_difference(counts):
    low, high = exact.difference_interval(*counts)
    assert -1 <= low < high <= 1
    assert max(float(exact.two_arms(*counts, Line(offset=edge))) for edge in (low, high)) >= np.log(
        20
    ) - 1e-6 or (
        low,
        high,
    ) == (-1, 1)
    rates = [s / (s + f) if s + f else 0.5 for s, f in counts]
    assert low < rates[1] - rates[0] < high


def test_it_is_narrower_than_two_intervals_at_half_the_error():
    control, treatment = (50, 50), (60, 40)
    low, high = exact.difference_interval(control, treatment)
    (a, b), (c, d) = (exact.one_arm_interval(*arm, alpha=0.025) for arm in (control, treatment))
    assert high - low < 0.9 * ((d - a) - (c - b))


def test_a_disaster_shows_in_twenty_units():
    _, high = exact.difference_interval((19, 1), (4, 16))
    assert high < -0.2


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.05, 0.05), (0.01, 0.01), (0.3, 0.5), (0.02, 0.1)])
def test_the_truth_is_left_out_in_at_most_five_percent_of_experiments(p, q):
    rng = np.random.default_rng(3)
    shape = (300, 150)
    arms = [
        (hit.cumsum(axis=1), (~hit).cumsum(axis=1)) for hit in (rng.random(shape) < p, rng.random(shape) < q)
    ]
    left_out = (exact.two_arms(arms[0], arms[1], Line(offset=q - p)) >= np.log(20)).any(axis=1)
    assert left_out.mean() <= 0.05
