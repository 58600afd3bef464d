"""The one model that is fitted: it finds what made the data."""

from __future__ import annotations

import numpy as np
import pytest

from router.calibration.stages import fit_logit, fit_nonnegative, log_loss
from router.classifiers.regression import softmax


def drawn(weights: list[float], rows: int = 4000, classes: int = 4, seed: int = 0):
    """Features and labels that a model of these weights drew."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, classes, len(weights)))
    chances = softmax(features @ np.array(weights))
    target = (rng.random((rows, 1)) < chances.cumsum(axis=1)).argmax(axis=1)
    return features, target


def test_it_finds_the_weights_that_made_the_labels() -> None:
    features, target = drawn([1.5, 0.0, 0.5])
    assert fit_logit(features, target, np.zeros(3), 1e-6) == pytest.approx([1.5, 0.0, 0.5], abs=0.1)


def test_no_small_step_goes_further_down() -> None:
    features, target = drawn([1.0, -0.7], rows=200)
    share = np.full(200, 1 / 200)
    best = fit_logit(features, target, np.zeros(2), 0.0)
    for step in ([1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3]):
        assert log_loss(features, target, best + step, share) > log_loss(features, target, best, share)


def test_the_penalty_keeps_few_rows_near_the_prior() -> None:
    features, target = drawn([3.0], rows=5)
    near = fit_logit(features, target, np.ones(1), 100.0)
    assert near == pytest.approx([1.0], abs=0.05)


def test_separable_rows_do_not_run_away() -> None:
    features = np.zeros((20, 2, 1))
    features[:, 0] = 1
    assert np.isfinite(fit_logit(features, np.zeros(20, int), np.ones(1), 1e-3)).all()


def test_weights_below_zero_are_held_at_zero() -> None:
    features, target = drawn([1.0, -1.0, -1.0])
    weights = fit_nonnegative(features, target, np.zeros(3), 1e-6, positive=2)
    assert weights[1] == 0
    assert weights[0] > 0.5
    assert weights[2] < -0.5
