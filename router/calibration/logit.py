"""Multinomial logistic regression with weights that all classes share: the one model that is fitted here.

Class c of row i has the logit `features[i, c] @ weights`. A temperature, the stacking of classifiers
(Wolpert, 1992) and a test for strange requests are all of this kind. Convex, so Newton's method finds the
one optimum; a penalty pulls towards `prior`, so that few rows do not move the weights far.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from router.calibration.arrays import Array

STEPS = 50
CLOSE = 1e-8


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def loss(features: Array, target: Array, weights: Array, share: Array) -> float:
    """Weighted mean negative log-likelihood, nats."""
    chances = softmax(features @ weights)
    picked = chances[np.arange(len(target)), target]
    return float(-(share * np.log(np.maximum(picked, 1e-12))).sum())


def fit(features: Array, target: Array, prior: Array, penalty: float, share: Array | None = None) -> Array:
    """Weights [d] for `features` [rows, classes, d] and `target` [rows].

    `share` [rows] weighs the rows and sums to 1 (default: alike); `penalty` is that of all rows together.
    """
    rows = len(target)
    share = np.full(rows, 1 / rows) if share is None else share
    weights = prior.astype(np.float64)
    chosen = features[np.arange(rows), target]

    def objective(w: Array) -> float:
        return loss(features, target, w, share) + penalty / 2 * float(((w - prior) ** 2).sum())

    value = objective(weights)
    for _ in range(STEPS):
        chances = softmax(features @ weights)
        mean = np.einsum("ic,icd->id", chances, features)
        gradient = share @ (mean - chosen) + penalty * (weights - prior)
        spread = np.einsum("ic,icd,ice->ide", chances, features, features) - mean[:, :, None] * mean[:, None]
        curvature = np.einsum("i,ide->de", share, spread) + (penalty + 1e-9) * np.eye(len(prior))
        step = np.linalg.solve(curvature, gradient)
        value, weights, moved = _descend(objective, value, weights, step)
        if moved < CLOSE:
            break
    return weights


def _descend(objective: Any, value: float, weights: Array, step: Array) -> tuple[float, Array, float]:
    """The first halving of `step` that does not go up."""
    size = 1.0
    while size > 1e-6:
        trial = weights - size * step
        if (there := objective(trial)) <= value:
            return there, trial, float(np.abs(size * step).max())
        size /= 2
    return value, weights, 0.0


def fit_positive(
    features: Array, target: Array, prior: Array, penalty: float, positive: int, share: Array | None = None
) -> Array:
    """The same, but the first `positive` weights are not below 0: those that would be are held at 0."""
    kept = np.ones(len(prior), bool)
    while True:
        weights = np.zeros(len(prior))
        weights[kept] = fit(features[:, :, kept], target, prior[kept], penalty, share)
        below = (weights < 0) & (np.arange(len(prior)) < positive)
        if not below.any():
            return weights
        kept &= ~below
