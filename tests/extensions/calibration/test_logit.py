"""The one model that is fitted: it finds what made the data."""

from __future__ import annotations

import numpy as np
import pytest

from router.classifiers.regression import softmax
from router.extensions.calibration.logit import DesignMatrix, fit_logit, fit_nonnegative, log_loss, plain


def drawn(weights: list[float], rows: int = 4000, classes: int = 4, seed: int = 0):
    """Features and labels that a model of these weights drew."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, classes, len(weights)))
    chances = softmax(features @ np.array(weights))
    target = (rng.random((rows, 1)) < chances.cumsum(axis=1)).argmax(axis=1)
    return features, target


def test_it_finds_the_weights_that_made_the_labels() -> None:
    features, target = drawn([1.5, 0.0, 0.5])
    assert fit_logit(plain(features), target, np.zeros(3), 1e-6) == pytest.approx([1.5, 0.0, 0.5], abs=0.1)


def test_no_small_step_goes_further_down() -> None:
    features, target = drawn([1.0, -0.7], rows=200)
    share = np.full(200, 1 / 200)
    best = fit_logit(plain(features), target, np.zeros(2), 0.0)
    for step in ([1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3]):
        assert log_loss(plain(features), target, best + step, share) > log_loss(
            plain(features), target, best, share
        )


def test_the_penalty_keeps_few_rows_near_the_prior() -> None:
    features, target = drawn([3.0], rows=5)
    near = fit_logit(plain(features), target, np.ones(1), 100.0)
    assert near == pytest.approx([1.0], abs=0.05)


def test_separable_rows_do_not_run_away() -> None:
    features = np.zeros((20, 2, 1))
    features[:, 0] = 1
    assert np.isfinite(fit_logit(plain(features), np.zeros(20, int), np.ones(1), 1e-3)).all()


def test_weights_below_zero_are_held_at_zero() -> None:
    features, target = drawn([1.0, -1.0, -1.0])
    weights = fit_nonnegative(plain(features), target, np.zeros(3), 1e-6, positive=2)
    assert weights[1] == 0
    assert weights[0] > 0.5
    assert weights[2] < -0.5


def test_it_finds_weights_that_each_class_has_of_its_own() -> None:
    rng = np.random.default_rng(3)
    features, common = rng.normal(size=(8000, 3, 1)), rng.normal(size=(8000, 2))
    own = np.array([[1.0, 0.0, -1.0], [0.0, -0.8, 0.8]])
    design = DesignMatrix(features, common)
    made = np.concatenate([[0.7], own.ravel()])
    chances = softmax(design.logits(made))
    target = (rng.random((8000, 1)) < chances.cumsum(axis=1)).argmax(axis=1)
    found = fit_logit(design, target, np.zeros(7), 1e-6)
    assert found == pytest.approx(made, abs=0.12)


def test_curvature_and_gradient_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(4)
    design = DesignMatrix(rng.normal(size=(30, 4, 2)), rng.normal(size=(30, 3)))
    target, share = rng.integers(0, 4, 30), rng.dirichlet(np.ones(30))
    weights = rng.normal(size=design.weights)
    truth = np.eye(4)[target]

    def gradient(at: np.ndarray) -> np.ndarray:
        return design.gradient(share[:, None] * (softmax(design.logits(at)) - truth))

    curvature = design.curvature(softmax(design.logits(weights)), share)
    for i, step in enumerate(np.eye(design.weights) * 1e-5):
        ahead, behind = weights + step, weights - step
        slope = (log_loss(design, target, ahead, share) - log_loss(design, target, behind, share)) / 2e-5
        assert gradient(weights)[i] == pytest.approx(slope, abs=1e-7)
        assert curvature[i] == pytest.approx((gradient(ahead) - gradient(behind)) / 2e-5, abs=1e-7)


def test_weights_that_are_held_stay_zero() -> None:
    features, target = drawn([1.0, 1.0])
    weights = fit_logit(plain(features), target, np.ones(2), 1e-6, held=np.array([False, True]))
    assert weights[1] == 0
    assert weights[0] > 0.5
