"""Small versions of `python -m benchmarks.experiment_statistics`: looks at every outcome, fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.experiment_simulation import (
    Source,
    false_positives,
    looks,
    proportion,
    ratio,
    skewed,
    units_to_verdict,
)
from router.experiments.stats import Moments, Plan, compare, fixed_size
from router.experiments.stats.compare import log_evidence


@pytest.mark.parametrize(
    "source", [proportion(0.05), proportion(0.5), skewed(), ratio()], ids=lambda s: s.name
)
def test_no_effect_gives_no_verdict(source: Source):
    (rate,) = false_positives(source, [Plan(units=1000)], 200, 500, seed=11)
    assert rate <= 0.05


def test_looking_every_time_with_fixed_intervals_does_give_verdicts():
    """That the simulation would notice: uncorrected tests are wrong far more often than 5 %."""
    wrong = 0
    source = proportion(0.5)
    control, treatment = looks(source, np.random.default_rng(1), 200, 500)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [m.sums[0] / m.n for m in (control, treatment)]
        variance = sum(r * (1 - r) / m.n for r, m in zip(rates, (control, treatment), strict=True))
        wrong = (np.abs(rates[1] - rates[0])[:, 100:] > 1.96 * np.sqrt(variance)[:, 100:]).any(axis=1).mean()
    assert wrong > 0.15


@pytest.mark.parametrize("source", [proportion(0.5, 0.1), skewed(0.3), ratio(0.1)], ids=lambda s: s.name)
def test_a_true_effect_is_found_in_time(source: Source):
    size = fixed_size(source.effect, source.variances)
    (found,) = units_to_verdict(source, [Plan(units=4 * size)], 200, 3 * size, seed=12)
    assert np.quantile(found, 0.8, method="inverted_cdf") <= 2.2 * 2 * size


def test_many_experiments_at_once_are_what_one_at_a_time_is():
    source, plan = proportion(0.3, 0.2), Plan(units=400)
    control, treatment = looks(source, np.random.default_rng(2), 2, 150)
    for look in (40, 150, 299):
        for row in range(2):
            one = [
                Moments(
                    int(m.n[row, look]),
                    (float(m.sums[0][row, look]),),
                    (float(m.products[0][row, look]),),
                )
                for m in (control, treatment)
            ]
            many = [
                Moments(m.n[:, look:], (m.sums[0][:, look:],), (m.products[0][:, look:],))
                for m in (control, treatment)
            ]
            evidence = log_evidence(source.metric, *many, plan)[row, 0]
            assert compare(source.metric, *one, plan).p == pytest.approx(np.exp(-max(0.0, evidence)))
