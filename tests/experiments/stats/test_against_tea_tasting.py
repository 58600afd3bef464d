"""Fixed-horizon numbers are those of tea-tasting, from the same sums."""

from __future__ import annotations

import numpy as np
import pytest

from router.experiments.stats import Kind, Metric, Moments
from router.experiments.stats.compare import pair
from router.experiments.stats.contrast import contrast, fixed_interval
from router.experiments.stats.length import length_adjusted

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
    "mean": (Metric("m", Kind.MEAN), [0], lambda: tasting.Mean("y", **OPTIONS)),
    "ratio": (Metric("m", Kind.RATIO), [0, 1], lambda: tasting.RatioOfMeans("y", "d", **OPTIONS)),
    "mean with covariate": (
        Metric("m", Kind.MEAN, covariate=True),
        [0, 2],
        lambda: tasting.Mean("y", "xy", **OPTIONS),
    ),
    "ratio with covariate": (
        Metric("m", Kind.RATIO, covariate=True),
        [0, 1, 2, 3],
        lambda: tasting.RatioOfMeans("y", "d", "xy", "xd", **OPTIONS),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_effect_interval_and_statistic(name):
    metric, picked, make = CASES[name]
    control, treatment = pair(metric, *(Moments.of(*rows[picked]) for rows in ARMS))
    difference = contrast(control, treatment)
    told = theirs(make())
    assert control.value == pytest.approx(told.control)
    assert treatment.value == pytest.approx(told.treatment)
    assert difference.value == pytest.approx(told.effect_size)
    assert float(difference.z) == pytest.approx(told.statistic)
    assert fixed_interval(difference) == pytest.approx((told.effect_size_ci_lower, told.effect_size_ci_upper))


def test_a_proportion_is_the_mean_of_zeros_and_ones():
    arms = [(rows[0] > 3).astype(float) for rows in ARMS]
    difference = contrast(*pair(Metric("p", Kind.PROPORTION), *map(Moments.of, arms)))
    rates, sizes = [a.mean() for a in arms], [len(a) for a in arms]
    variance = sum(p * (1 - p) / (n - 1) for p, n in zip(rates, sizes, strict=True))
    assert difference.value == pytest.approx(rates[1] - rates[0])
    assert difference.variance == pytest.approx(variance)


def test_the_covariate_takes_out_what_it_explains():
    metric = Metric("m", Kind.MEAN, covariate=True)
    plain = contrast(*pair(Metric("m", Kind.MEAN), *(Moments.of(rows[0]) for rows in ARMS)))
    better = contrast(*pair(metric, *(Moments.of(*rows[[0, 2]]) for rows in ARMS)))
    explained = np.mean([np.corrcoef(rows[0], rows[2])[0, 1] ** 2 for rows in ARMS])
    assert better.variance == pytest.approx(plain.variance * (1 - explained), rel=0.02)
    assert better.variance < plain.variance


def test_length_adjustment_is_the_regression_on_arm_and_length():
    control, treatment = (rows[[0, 1]] for rows in ARMS)
    found = length_adjusted(Moments.of(*control), Moments.of(*treatment))
    value, length = np.concatenate((control, treatment), axis=1)
    arm = np.repeat([0.0, 1.0], [control.shape[1], treatment.shape[1]])
    design = np.column_stack((np.ones_like(arm), arm, length))
    (_, effect, slope), (squares,), *_ = np.linalg.lstsq(design, value, rcond=None)
    variance = squares / (len(value) - 3) * np.linalg.inv(design.T @ design)[1, 1]
    assert found.adjusted.value == pytest.approx(effect)
    assert found.slope == pytest.approx(slope)
    assert found.adjusted.variance == pytest.approx(variance, rel=0.05)  # theirs pools the arms' variances
    assert found.raw == pytest.approx(treatment[0].mean() - control[0].mean())
