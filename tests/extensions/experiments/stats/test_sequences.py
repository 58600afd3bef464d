"""Evidence and boundaries, against integrals, published formulas and simulated peeking."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.extensions.experiments.stats import sequences
from router.extensions.experiments.stats.sequences import Line

special = pytest.importorskip("scipy.special")
integrate = pytest.importorskip("scipy.integrate")


@pytest.mark.parametrize("z", [-3.0, 0.0, 1.5, 4.0])
@pytest.mark.parametrize("gain", [0.1, 1.0, 30.0])
def test_evidence_is_the_mixture_of_likelihood_ratios(z, gain):
    def weighted(x: float) -> float:
        return math.exp(x * z - x * x / 2 - x * x / (2 * gain)) / math.sqrt(2 * math.pi * gain)

    whole = integrate.quad(weighted, -40, 40, limit=200)[0]
    upper = 2 * integrate.quad(weighted, 0, 40, limit=200)[0]
    assert float(sequences.two_sided(z, gain)) == pytest.approx(math.log(whole), abs=1e-7)
    assert float(sequences.one_sided(z, gain)) == pytest.approx(math.log(upper), abs=1e-7)


def test_the_boundary_is_equation_9():
    """Width of arXiv:2103.06476, equation 9, in its own notation."""
    n, alpha, planned = 700, 0.05, 5000
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / planned
    inside = 2 * (n * rho2 + 1) / (n * n * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha)
    got = float(sequences.two_sided_bound(sequences.peak_gain(alpha) * n / planned, alpha))
    assert got / math.sqrt(n) == pytest.approx(math.sqrt(inside))


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.1])
@pytest.mark.parametrize("gain", [0.2, 8.0, 100.0])
def test_at_the_boundary_evidence_is_one_over_alpha(gain, alpha):
    two = sequences.two_sided_bound(gain, alpha)
    assert float(sequences.two_sided(two, gain)) == pytest.approx(-math.log(alpha))
    assert float(sequences.one_sided(two, gain)) > -math.log(alpha)


def test_the_boundary_is_tightest_near_the_planned_size():
    n = np.arange(500, 20_000, 50)
    width = sequences.two_sided_bound(sequences.peak_gain(0.05) * n / 5000, 0.05) / np.sqrt(n)
    others = [
        sequences.two_sided_bound(sequences.peak_gain(0.05) * n / planned, 0.05) / np.sqrt(n)
        for planned in (2500, 10_000)
    ]
    here = n == 5000
    assert all(width[here] < other[here] for other in others)


def test_the_normal_distribution_far_out():
    x = np.array([-300.0, -40.0, -36.7, -8.0, 0.0, 3.0])
    np.testing.assert_allclose(sequences.log_normal_cdf(x), special.log_ndtr(x), rtol=2e-3)
    np.testing.assert_allclose(sequences.log_normal_cdf(x[3:]), special.log_ndtr(x[3:]), rtol=1e-12)


def test_one_sided_evidence_is_none_for_the_other_side():
    assert float(sequences.one_sided(-5.0, 8.0)) < -1


stats = pytest.importorskip("scipy.stats")


def one_arm(s: int, f: int, p: np.ndarray) -> np.ndarray:
    """Log evidence against rates of one arm: beta-binomial over binomial."""
    return stats.betabinom.logpmf(s, s + f, 0.5, 0.5) - stats.binom.logpmf(s, s + f, p)


def test_rates_that_cannot_be_have_infinite_evidence():
    assert sequences.two_arms((1, 2), (2, 1), Line(offset=1.5)) == np.inf


@pytest.mark.parametrize(
    "line", [Line(), Line(offset=0.1), Line(offset=-0.2), Line(scale=1.1), Line(0.9, 0.01)]
)
def test_two_arms_is_the_least_over_all_rates_on_the_line(line):
    control, treatment = (30, 70), (45, 55)
    grid = np.linspace(1e-5, 1 - 1e-5, 200_001)
    on = line.scale * grid + line.offset
    inside = (on > 0) & (on < 1)
    total = one_arm(*control, grid[inside]) + one_arm(*treatment, on[inside])
    assert float(sequences.two_arms(control, treatment, line)) == pytest.approx(total.min(), abs=1e-5)


@pytest.mark.parametrize(
    "counts", [((0, 0), (0, 0)), ((0, 20), (15, 5)), ((50, 50), (60, 40)), ((3, 997), (9, 991))]
)
def test_the_interval_of_a_difference(counts):
    low, high = map(float, sequences.difference_bounds(*counts))
    assert -1 <= low < high <= 1
    assert max(float(sequences.two_arms(*counts, Line(offset=edge))) for edge in (low, high)) >= np.log(
        20
    ) - 1e-6 or (
        low,
        high,
    ) == (-1, 1)
    rates = [s / (s + f) if s + f else 0.5 for s, f in counts]
    assert low < rates[1] - rates[0] < high


def one_arm_interval(s: int, f: int, alpha: float) -> tuple[float, float]:
    rates = np.linspace(1e-4, 1 - 1e-4, 10_001)
    inside = rates[one_arm(s, f, rates) < -np.log(alpha)]
    return inside[0], inside[-1]


def test_it_is_narrower_than_two_intervals_at_half_the_error():
    control, treatment = (50, 50), (60, 40)
    low, high = sequences.difference_bounds(control, treatment)
    (a, b), (c, d) = (one_arm_interval(*arm, alpha=0.025) for arm in (control, treatment))
    assert high - low < 0.9 * ((d - a) - (c - b))


def test_a_disaster_shows_in_twenty_units():
    _, high = sequences.difference_bounds((19, 1), (4, 16))
    assert high < -0.2


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.05, 0.05), (0.01, 0.01), (0.3, 0.5), (0.02, 0.1)])
def test_the_truth_is_left_out_in_at_most_five_percent_of_experiments(p, q):
    rng = np.random.default_rng(3)
    shape = (300, 150)
    arms = [
        (hit.cumsum(axis=1), (~hit).cumsum(axis=1)) for hit in (rng.random(shape) < p, rng.random(shape) < q)
    ]
    left_out = (sequences.two_arms(arms[0], arms[1], Line(offset=q - p)) >= np.log(20)).any(axis=1)
    assert left_out.mean() <= 0.05


def test_the_planned_boundary_is_the_level_of_the_reflection_principle():
    """|z| >= 2.2414 sqrt(N/n), at no other size than up to the plan."""
    part = np.array([0.0, 0.01, 0.25, 1.0, 1.0001])
    found = sequences.planned_bound(part, 0.05)
    np.testing.assert_allclose(found, [np.inf, 22.414, 4.4828, 2.2414, np.inf], atol=1e-3)
    assert 4 * special.ndtr(-found[3]) == pytest.approx(0.05)


@pytest.mark.parametrize("alpha", [0.001, 0.045, 0.2])
def test_planned_evidence_is_one_over_alpha_at_the_planned_boundary(alpha):
    part = np.array([0.1, 0.5, 1.0])
    z = sequences.planned_bound(part, alpha)
    np.testing.assert_allclose(sequences.planned_evidence(-z, part), -math.log(alpha), atol=1e-9)
    assert not sequences.planned_evidence([0.0, 9.0], [0.5, 1.1]).any()


def test_brownian_motion_leaves_the_planned_boundary_as_often_as_promised():
    """Looked at 400 times: a little less than alpha, and far less at one look."""
    rng = np.random.default_rng(4)
    part = np.arange(1, 401) / 400
    z = (rng.standard_normal((8000, 400)) / 20).cumsum(axis=1) / np.sqrt(part)
    shown = np.abs(z) >= sequences.planned_bound(part, 0.05)
    assert 0.038 < shown.any(axis=1).mean() < 0.05
    assert 0.018 < shown[:, -1].mean() < 0.032
