"""Boundaries and evidence of normal mixtures, against integrals and published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.experiments.stats import sequences as mixture

special = pytest.importorskip("scipy.special")
integrate = pytest.importorskip("scipy.integrate")


@pytest.mark.parametrize("z", [-3.0, 0.0, 1.5, 4.0])
@pytest.mark.parametrize("gain", [0.1, 1.0, 30.0])
def test_evidence_is_the_mixture_of_likelihood_ratios(z, gain):
    def weighted(x: float) -> float:
        return math.exp(x * z - x * x / 2 - x * x / (2 * gain)) / math.sqrt(2 * math.pi * gain)

    whole = integrate.quad(weighted, -40, 40, limit=200)[0]
    upper = 2 * integrate.quad(weighted, 0, 40, limit=200)[0]
    assert float(mixture.two_sided(z, gain)) == pytest.approx(math.log(whole), abs=1e-7)
    assert float(mixture.one_sided(z, gain)) == pytest.approx(math.log(upper), abs=1e-7)


def test_the_boundary_is_equation_9():
    """Width of arXiv:2103.06476, equation 9, in its own notation."""
    n, alpha, planned = 700, 0.05, 5000
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / planned
    inside = 2 * (n * rho2 + 1) / (n * n * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha)
    got = float(mixture.two_sided_bound(mixture.peak_gain(alpha) * n / planned, alpha))
    assert got / math.sqrt(n) == pytest.approx(math.sqrt(inside))


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.1])
@pytest.mark.parametrize("gain", [0.2, 8.0, 100.0])
def test_at_the_boundary_evidence_is_one_over_alpha(gain, alpha):
    two = mixture.two_sided_bound(gain, alpha)
    assert float(mixture.two_sided(two, gain)) == pytest.approx(-math.log(alpha))
    assert float(mixture.one_sided(two, gain)) > -math.log(alpha)


def test_the_boundary_is_tightest_near_the_planned_size():
    n = np.arange(500, 20_000, 50)
    width = mixture.two_sided_bound(mixture.peak_gain(0.05) * n / 5000, 0.05) / np.sqrt(n)
    others = [
        mixture.two_sided_bound(mixture.peak_gain(0.05) * n / planned, 0.05) / np.sqrt(n)
        for planned in (2500, 10_000)
    ]
    here = n == 5000
    assert all(width[here] < other[here] for other in others)


def test_the_normal_distribution_far_out():
    x = np.array([-300.0, -40.0, -36.7, -8.0, 0.0, 3.0])
    np.testing.assert_allclose(mixture.log_normal_cdf(x), special.log_ndtr(x), rtol=2e-3)
    np.testing.assert_allclose(mixture.log_normal_cdf(x[3:]), special.log_ndtr(x[3:]), rtol=1e-12)


def test_one_sided_evidence_is_none_for_the_other_side():
    assert float(mixture.one_sided(-5.0, 8.0)) < -1
