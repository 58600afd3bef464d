import math
from dataclasses import replace
from unittest.mock import Mock, patch

import numpy as np
import pytest

from router.extensions.experiments.assignment import AssignmentSalts, UnitAllocation, WeightedArm
from router.extensions.experiments.model import Aggregate, Kind, MetricSpec
from router.extensions.experiments.self_test import (
    Drawn,
    _any_shown,
    _chi_square_tail,
    _too_many,
    arm_shares,
    error_rate,
    moments_of_powers,
    uniformity,
    unit_powers,
)
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import Moments
from router.extensions.experiments.verdict import ExperimentDesign
from tests.extensions.experiments.plans import SOLVED


def test_hashes_are_uniform():
    found = uniformity("some salt")
    assert found.sound
    assert found.text.startswith("20,000 hashed units in 20 equal parts: chi-square ")


def test_a_bad_hash_is_found(monkeypatch):
    monkeypatch.setattr(
        "router.extensions.experiments.self_test.fraction", lambda salt, unit: (int(unit[5:]) % 97) / 100
    )
    assert not uniformity("some salt").sound


@pytest.mark.parametrize(("square", "p"), [(30.144, 0.05), (36.191, 0.01), (43.820, 0.001), (19.0, 0.4568)])
def test_tails_are_those_of_tables(square, p):
    assert _chi_square_tail(square, 19) == pytest.approx(p, rel=0.05)


def test_weights_are_kept_by_the_hash():
    found = arm_shares(AssignmentSalts("e", "v"), {"old": 0.9, "new": 0.08, "odd": 0.02})
    assert found.sound
    assert found.text.startswith("of 20,000 hashed units old 9")


def test_other_weights_are_found():
    allocation = {"old": 0.9, "new": 0.1}
    salts = AssignmentSalts("e", "v")
    assert arm_shares(salts, allocation).sound
    lying = Mock(wraps=UnitAllocation)
    lying.side_effect = lambda salts, arms: UnitAllocation(
        salts, (WeightedArm("old", 0.88), WeightedArm("new", 0.12))
    )
    with patch("router.extensions.experiments.self_test.UnitAllocation", lying):
        assert not arm_shares(salts, allocation).sound


def design(metric=SOLVED, weights=(0.5, 0.5), units=400):
    names = [f"arm{i}" for i in range(len(weights))]
    weighted = dict(zip(names, weights, strict=True))
    return ExperimentDesign("arm0", weighted, Drawn.of(metric).metric, plan=SequencePlan(units=units))


SECONDS = MetricSpec("seconds", Kind.MEAN, False, Aggregate.SUM)
COST = MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "weights", "units"),
    [
        (SOLVED, (0.5, 0.5), 400),
        (SOLVED, (0.9, 0.05, 0.05), 3000),
        (SECONDS, (0.6, 0.4), 4000),
        (replace(SECONDS, cap=2.0), (0.95, 0.05), 4000),
        (COST, (0.6, 0.2, 0.2), 5000),
        (replace(SOLVED, covariate=True), (0.8, 0.2), 1000),
    ],
    ids=lambda value: str(value) if not isinstance(value, MetricSpec) else value.name,
)
def test_equal_arms_are_rarely_told_apart(metric, weights, units):
    found = error_rate(Drawn.of(metric), design(metric, weights, units), units, "seed", again=200)
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
    assert not error_rate(Drawn.of(SOLVED, 0.5), design(weights=weights), 1000, "seed", again=200).sound


def test_an_effect_would_be_shown():
    """What is simulated has power: the same sums with one arm lifted differ significantly."""
    columns = Drawn.of(SOLVED, 0.3).values(4000, 1)
    arms = np.arange(4000) % 2
    sums = np.stack([(unit_powers(columns) * (arms == i)[:, None]).sum(0) for i in (0, 1)])
    lifted = sums.copy()
    lifted[1, 1:] *= 1.5
    assert not _any_shown(Drawn.of(SOLVED).metric, design(units=4000), sums[:, :, None]).any()
    assert _any_shown(Drawn.of(SOLVED).metric, design(units=4000), lifted[:, :, None]).all()


def test_few_units_show_nothing():
    found = error_rate(Drawn.of(SOLVED), design(), 1, "seed", again=10)
    assert found.text.startswith("0 of 10 assignments")


def test_how_many_are_too_many():
    assert _too_many(400, 0.05) == 36
    assert _too_many(10, 0.5) == 10


SECONDS_EACH = MetricSpec("seconds", Kind.MEAN, aggregate=Aggregate.SUM, covariate=True)


def test_a_proportion_at_its_rate():
    (values,) = Drawn.of(MetricSpec("solved", Kind.PROPORTION), 0.05).values(20_000, 1)
    assert set(values) == {0.0, 1.0}
    assert values.mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("rate", [None, 0.0, 1.0, math.nan])
def test_a_rate_that_tells_nothing_is_the_usual_one(rate):
    assert Drawn.of(MetricSpec("solved", Kind.PROPORTION), rate).mean == 0.3


def test_a_mean_with_its_deviation():
    (values,) = Drawn.of(SECONDS_EACH, 12.0, 9.0).values(200_000, 1)
    assert values.min() > 0
    assert (values.mean(), values.std()) == (pytest.approx(12, rel=0.02), pytest.approx(9, rel=0.05))
    assert Drawn.of(SECONDS_EACH).metric.columns == 1


@pytest.mark.parametrize("known", [(None, 1.0), (1.0, None), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0)])
def test_what_is_no_log_normal_has_the_usual_values(known):
    assert Drawn.of(SECONDS_EACH, *known) == Drawn(SECONDS_EACH, 1.0, 1.0)


@pytest.mark.parametrize("per", ["responses", "sessions"])
def test_a_ratio_has_a_denominator(per):
    drawn = Drawn.of(MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per=per), 2.0, 1.0)
    above, below = drawn.values(50_000, 1)
    assert below.min() > 0
    assert above.sum() / below.sum() == pytest.approx(2, rel=0.03)
    assert np.array_equal(below, below.round()) == (per == "responses")


def test_values_count_within_their_cap():
    drawn = Drawn.of(MetricSpec("seconds", Kind.MEAN, aggregate=Aggregate.SUM, cap=2.0, least=0.5))
    counted = drawn.counted(drawn.values(1000, 1))
    assert (counted.min(), counted.max()) == (0.5, 2.0)


def test_powers_are_the_sums_that_moments_have():
    columns = np.array([[1.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    found = moments_of_powers(unit_powers(columns).sum(axis=0), 2)
    assert found == Moments.of(*columns)
