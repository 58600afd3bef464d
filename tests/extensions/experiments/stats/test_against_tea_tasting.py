"""Fixed-horizon numbers are those of tea-tasting, from the same sums."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.compare import ArmPair, SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, Moments

tasting = pytest.importorskip("tea_tasting")
aggregated = pytest.importorskip("tea_tasting.aggr")

NAMES = ("y", "d", "xy", "xd")


def columns(seed: int, shift: float) -> np.ndarray:
    """Numerator and denominator of 700 or so units, and the same of the time before."""
    rng = np.random.default_rng(seed)
    units = 700 + 13 * seed
    skill = rng.normal(size=units)
    before, during = 1 + rng.poisson(2, units), 1 + rng.poisson(3, units)
    return np.array(
        [
            during * (1 + shift) + skill + rng.normal(size=units),
            during,
            before + skill + rng.normal(size=units),
            before,
        ]
    )


ARMS = (columns(1, 0.0), columns(2, 0.2))


def theirs(metric: object) -> object:
    data = {}
    for variant, rows in enumerate(ARMS):
        table = np.cov(rows)
        data[variant] = aggregated.Aggregates(
            count_=rows.shape[1],
            mean_=dict(zip(NAMES, map(float, rows.mean(axis=1)), strict=True)),
            var_={name: float(table[i, i]) for i, name in enumerate(NAMES)},
            cov_={
                (a, b): float(table[i, j]) for i, a in enumerate(NAMES) for j, b in enumerate(NAMES) if a < b
            },
        )
    return metric.analyze(data, 0, 1, variant="variant")


OPTIONS = {"use_t": False, "equal_var": False}
CASES = {
    "mean": (ComparedMetric("m", Kind.MEAN), [0], lambda: tasting.Mean("y", **OPTIONS)),
    "ratio": (ComparedMetric("m", Kind.RATIO), [0, 1], lambda: tasting.RatioOfMeans("y", "d", **OPTIONS)),
    "mean with covariate": (
        ComparedMetric("m", Kind.MEAN, covariate=True),
        [0, 2],
        lambda: tasting.Mean("y", "xy", **OPTIONS),
    ),
    "ratio with covariate": (
        ComparedMetric("m", Kind.RATIO, covariate=True),
        [0, 1, 2, 3],
        lambda: tasting.RatioOfMeans("y", "d", "xy", "xd", **OPTIONS),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_effect_interval_and_statistic(name):
    metric, picked, make = CASES[name]
    arms = ArmPair(metric, *(Moments.of(*rows[picked]) for rows in ARMS), SequencePlan())
    (control, treatment), difference = arms.estimates, float(arms.difference())
    told = theirs(make())
    assert control.value == pytest.approx(told.control)
    assert treatment.value == pytest.approx(told.treatment)
    assert difference == pytest.approx(told.effect_size)
    error = np.sqrt(sum(arms.variances[0]))
    assert difference / error == pytest.approx(told.statistic)
    half = NormalDist().inv_cdf(0.975) * error
    assert (difference - half, difference + half) == pytest.approx(
        (told.effect_size_ci_lower, told.effect_size_ci_upper)
    )
    assert abs(float(arms.z())) <= abs(told.statistic)
    assert abs(float(arms.z())) == pytest.approx(abs(told.statistic), rel=0.1)


def test_a_proportion_is_the_mean_of_zeros_and_ones():
    arms = [(rows[0] > 3).astype(float) for rows in ARMS]
    found = ArmPair(ComparedMetric("p", Kind.PROPORTION), *map(Moments.of, arms), SequencePlan())
    rates, sizes = [a.mean() for a in arms], [len(a) for a in arms]
    variance = sum(p * (1 - p) / n for p, n in zip(rates, sizes, strict=True))
    assert found.difference() == pytest.approx(rates[1] - rates[0])
    assert float(found.z()) == pytest.approx((rates[1] - rates[0]) / np.sqrt(variance), rel=0.05)


def test_the_covariate_takes_out_what_it_explains():
    metric = ComparedMetric("m", Kind.MEAN, covariate=True)
    plain = ArmPair(
        ComparedMetric("m", Kind.MEAN), *(Moments.of(rows[0]) for rows in ARMS), SequencePlan()
    ).variance()
    better = ArmPair(metric, *(Moments.of(*rows[[0, 2]]) for rows in ARMS), SequencePlan()).variance()
    explained = np.mean([np.corrcoef(rows[0], rows[2])[0, 1] ** 2 for rows in ARMS])
    assert better == pytest.approx(plain * (1 - explained), rel=0.02)
    assert better < plain
