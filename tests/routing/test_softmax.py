"""Softmax regression by its dual."""

from __future__ import annotations

import numpy as np

from router.classifiers.regression import balanced_weights, fit_dual, product_in_pieces, softmax


def test_the_gradient_steps_reach_the_optimum() -> None:
    """Oracle: plain gradient descent, run long, on the same objective."""
    penalty = 0.02
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    allowed = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    allowed[-1] = (1, 1, 0)
    gram = x @ x.T
    fast = fit_dual(gram, allowed, penalty)
    weight, slow = balanced_weights(allowed)[:, None], np.zeros_like(allowed)
    for _ in range(5000):
        p = softmax(gram @ slow)
        q = p * allowed / (p * allowed).sum(1, keepdims=True)
        slow -= 0.5 * (weight * (p - q) + penalty * slow)
    assert np.abs(gram @ fast - gram @ slow).max() < 0.02


def test_the_pieces_of_a_product_make_the_product() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(300, 300)), rng.normal(size=(300, 40))
    assert np.allclose(product_in_pieces(a, b), a @ b)
    assert not product_in_pieces(np.zeros((5, 0)), np.zeros((0, 5))).any()


def test_every_class_weighs_the_same() -> None:
    allowed = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    assert np.allclose(balanced_weights(allowed), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
