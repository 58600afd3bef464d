"""One adapter against strangers: the closed forms against what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from router.classifiers.nearest import BIAS, PENALTY, SHARE, Array, BackgroundNegatives, LinearScorer

SIZE = 40
NONE = np.zeros((0, SIZE), np.float32)


def units(count: int, seed: int, towards: int | None = None) -> Array:
    rows = np.random.default_rng(seed).standard_normal((count, SIZE))
    if towards is not None:
        rows[:, towards] += 6
    found: Array = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def slow_score(own: Array, strange: Array, asked: Array) -> float:
    """Weighted ridge regression, solved as a whole."""
    rows = np.concatenate([own, strange]).astype(np.float64)
    target = np.concatenate([np.ones(len(own)), -np.ones(len(strange))])
    penalty = np.concatenate(
        [np.full(len(own), PENALTY * OWN / (SHARE * STRANGE)), np.full(len(strange), PENALTY)]
    )
    dual = np.linalg.solve(rows @ rows.T + BIAS + np.diag(penalty), target)
    return float((asked @ rows.T + BIAS) @ dual)


OWN, STRANGE = 8, 60


@pytest.fixture(scope="module")
def strange() -> Array:
    return units(STRANGE, seed=1)


def test_the_score_is_that_of_ridge_regression(strange: Array) -> None:
    own, asked = units(OWN, seed=2, towards=0), units(1, seed=3)[0]
    verdict = BackgroundNegatives(strange).learn(own, NONE)
    assert verdict.above(asked) + verdict.level == pytest.approx(slow_score(own, strange, asked), abs=0.01)


def test_left_out_is_as_though_it_had_not_been_there(strange: Array) -> None:
    """The level of texts apart is half-way between the last stranger and nine of ten of their own."""
    own = units(OWN, seed=2, towards=0)
    verdict = BackgroundNegatives(strange).learn(own, NONE)
    left_out = [slow_score(np.delete(own, i, axis=0), strange, own[i]) for i in range(OWN)]
    away = [slow_score(own, np.delete(strange, i, axis=0), strange[i]) for i in range(STRANGE)]
    expected = (max(away) + float(np.quantile(left_out, 0.1))) / 2
    assert verdict.level == pytest.approx(expected, abs=0.02)


def test_a_topic_of_its_own_is_recognised_and_strangers_are_not(strange: Array) -> None:
    verdict = BackgroundNegatives(strange).learn(units(OWN, seed=2, towards=0), NONE)
    assert verdict.recognised == 1.0
    assert verdict.taken == 0.0
    assert sum(verdict.above(row) > 0 for row in units(20, seed=4, towards=0)) >= 16
    assert sum(verdict.above(row) > 0 for row in units(200, seed=5)) <= 10


def test_examples_like_everything_else_take_few_strangers(strange: Array) -> None:
    verdict = BackgroundNegatives(strange).learn(units(OWN, seed=6), NONE)
    assert verdict.recognised < 0.5
    assert verdict.taken <= 0.05


def test_a_negative_example_pulls_down(strange: Array) -> None:
    own, against = units(OWN, seed=2, towards=0), units(4, seed=7, towards=0)
    strangers = BackgroundNegatives(strange)
    before, after = strangers.learn(own, NONE), strangers.learn(own, against)
    assert all(after.above(row) < before.above(row) for row in against)


def test_it_survives_being_kept(strange: Array) -> None:
    verdict = BackgroundNegatives(strange).learn(units(OWN, seed=2, towards=0), NONE)
    again = LinearScorer.of(verdict.packed().astype(np.float32))
    asked = units(1, seed=3)[0]
    assert again.above(asked) == pytest.approx(verdict.above(asked), abs=0.01)
    assert again.recognised == pytest.approx(verdict.recognised, abs=0.001)
