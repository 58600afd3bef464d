import random

import numpy as np
import pytest

from router.experiments.self_test import _chi_square_tail, _most, error_rate, uniform
from router.experiments.stats import Plan


def test_hashes_are_uniform():
    found = uniform("some salt")
    assert found.sound
    assert found.text.startswith("20,000 hashed units in 20 equal parts: chi-square ")


def test_a_bad_hash_is_found(monkeypatch):
    monkeypatch.setattr(
        "router.experiments.self_test.fraction", lambda salt, unit: (int(unit[5:]) % 97) / 100
    )
    assert not uniform("some salt").sound


@pytest.mark.parametrize(("square", "p"), [(30.144, 0.05), (36.191, 0.01), (43.820, 0.001), (19.0, 0.4568)])
def test_tails_are_those_of_tables(square, p):
    assert _chi_square_tail(square, 19) == pytest.approx(p, rel=0.05)


def test_equal_arms_are_rarely_told_apart():
    dice = random.Random(3)
    values = {f"u{i}": float(dice.random() < 0.5) for i in range(300)}
    found = error_rate(values, Plan(units=300), "seed", again=100)
    assert found.sound
    assert "of 100 assignments anew" in found.text


def test_peeking_at_the_usual_test_is_found(monkeypatch):
    """One look at a time at |z| > 1.96 is wrong far more often than at one look: about 19 % in ten."""

    def naive(arms):
        control, treatment = arms.control, arms.treatment
        rates = [arm.sums[0] / arm.n for arm in (control, treatment)]
        variance = sum(r * (1 - r) / arm.n for r, arm in zip(rates, (control, treatment), strict=True))
        return np.where(np.abs(rates[1] - rates[0]) > 1.96 * np.sqrt(variance), np.inf, 0.0)

    monkeypatch.setattr("router.experiments.self_test.Arms.evidence", naive)
    dice = random.Random(3)
    values = {f"u{i}": float(dice.random() < 0.5) for i in range(400)}
    assert not error_rate(values, Plan(units=400), "seed").sound


def test_few_units_show_nothing():
    assert error_rate({"a": 1.0}, Plan(), "seed", again=10).text.startswith("0 of 10 assignments")


def test_how_many_are_too_many():
    assert _most(400, 0.05) == 36
    assert _most(10, 0.5) == 10
