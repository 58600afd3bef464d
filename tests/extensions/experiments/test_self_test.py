"""The error rate that an A/A test simulates: low for what is sound, high for looks at the usual test."""

import numpy as np
import pytest

from router.extensions.experiments.self_test import any_shown, error_rate, too_many
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, Kind
from router.extensions.experiments.verdict import ExperimentDesign


def design(weights=(0.5, 0.5), units=400):
    weighted = {f"arm{i}": weight for i, weight in enumerate(weights)}
    metric = ComparedMetric("solved", Kind.PROPORTION)
    return ExperimentDesign("arm0", weighted, metric, plan=SequencePlan(units=units))


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "units"), [((0.5, 0.5), 400), ((0.9, 0.05, 0.05), 3000)])
def test_equal_arms_are_rarely_told_apart(weights, units):
    found = error_rate(design(weights, units), units, 1, again=200)
    assert found.sound, found.text
    assert f"of 200 assignments of {units:,} units anew" in found.text
    assert ("arms against arm0" in found.text) == (len(weights) > 2)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.1, 0.1)])
def test_peeking_at_the_usual_test_is_found(monkeypatch, weights):
    """One look at a time at |z| > 1.96 is wrong far more often than at one look: about 19 % in ten."""

    def naive(arms):
        control, treatment = arms.control, arms.treatment
        rates = [arm.sums[0] / arm.n for arm in (control, treatment)]
        variance = sum(r * (1 - r) / arm.n for r, arm in zip(rates, (control, treatment), strict=True))
        return np.where(np.abs(rates[1] - rates[0]) > 1.96 * np.sqrt(variance), np.inf, 0.0)

    monkeypatch.setattr("router.extensions.experiments.self_test.ArmPair.evidence", naive)
    assert not error_rate(design(weights), 1000, 1, again=200).sound


@pytest.mark.parametrize(("ones", "shown"), [(600.0, False), (900.0, True)])
def test_an_effect_would_be_shown(ones, shown):
    sums = {arm: (np.array([2000.0]), np.array([of])) for arm, of in (("arm0", 600.0), ("arm1", ones))}
    assert any_shown(design(units=4000), sums).tolist() == [shown]


def test_few_units_show_nothing():
    assert error_rate(design(), 1, 1, again=10).text.startswith("0 of 10 assignments")


def test_how_many_are_too_many():
    assert too_many(400, 0.05) == 36
    assert too_many(10, 0.5) == 10
