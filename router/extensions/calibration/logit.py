"""Multinomial logistic regression: the one model that a calibration fits, by Newton's method.

Class c of row i has the logit `features[i, c] @ shared + common[i] @ own[:, c]`: weights that all classes
share, and weights that each class has of its own. A temperature, the stacking of classifiers (Wolpert, 1992)
and a test for strange requests are all of this kind. Convex, so there is one optimum; a penalty pulls towards
`prior`, so that few rows do not move the weights far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from router.classifiers.regression import softmax
from router.extensions.calibration.cascade import Array

NEWTON_STEPS = 50
CLOSE = 1e-8  # a step so short is the last


@dataclass(frozen=True, slots=True)
class DesignMatrix:
    """What is known of each row. Weights are [d + q * classes]: the shared ones, then `own` row by row."""

    features: Array  # [rows, classes, d]
    common: Array  # [rows, q]; q may be 0

    @property
    def shared(self) -> int:
        """Weights that all classes share."""
        return int(self.features.shape[2])

    @property
    def weights(self) -> int:
        """All of them."""
        return int(self.shared + self.common.shape[1] * self.features.shape[1])

    def own(self, weights: Array) -> Array:
        """[q, classes] those that each class has of its own."""
        return weights[self.shared :].reshape(self.common.shape[1], self.features.shape[1])

    def logits(self, weights: Array) -> Array:
        """[rows, classes]"""
        found: Array = self.features @ weights[: self.shared] + self.common @ self.own(weights)
        return found

    def gradient(self, residual: Array) -> Array:
        """[weights] of a loss whose derivative by the logits is `residual` [rows, classes]."""
        shared = np.einsum("ic,icd->d", residual, self.features)
        return np.concatenate([shared, (self.common.T @ residual).ravel()])

    def curvature(self, chances: Array, share: Array) -> Array:
        """[weights, weights] of the log-loss, by blocks: most of it is of few numbers a row."""
        d, classes = self.shared, chances.shape[1]
        found = np.zeros((self.weights, self.weights))
        weight = chances * share[:, None]
        mean = np.einsum("ic,icd->id", chances, self.features)
        apart = self.features - mean[:, None]
        flat = (apart * np.sqrt(weight)[:, :, None]).reshape(-1, d)
        found[:d, :d] = flat.T @ flat
        for c in range(classes if self.common.shape[1] else 0):
            mine = slice(d + c, None, classes)
            found[:d, mine] = (apart[:, c] * weight[:, c, None]).T @ self.common
            found[mine, :d] = found[:d, mine].T
            for other in range(c + 1):
                both = weight[:, c] * (float(c == other) - chances[:, other])
                block = (self.common * both[:, None]).T @ self.common
                found[mine, d + other :: classes] = block
                found[d + other :: classes, mine] = block
        return found


def fit_nonnegative(
    design: DesignMatrix,
    target: Array,
    prior: Array,
    penalty: float | Array,
    positive: int,
    share: Array | None = None,
) -> Array:
    """Like `fit_logit`, but the first `positive` weights are not below 0; who would be is held at 0."""
    held = np.zeros(len(prior), bool)
    while True:
        weights = fit_logit(design, target, prior, penalty, share, held)
        below = (weights < 0) & (np.arange(len(prior)) < positive)
        if not below.any():
            return weights
        held |= below


def fit_logit(
    design: DesignMatrix,
    target: Array,
    prior: Array,
    penalty: float | Array,
    share: Array | None = None,
    held: Array | None = None,
) -> Array:
    """The weights for `target` [rows], the place of each row's class.

    `share` [rows] weighs the rows and sums to 1 (default: alike); `penalty`, of one weight or of all, is that
    of all rows together; weights that are `held` are 0.
    """
    rows = len(target)
    share = np.full(rows, 1 / rows) if share is None else share
    free = np.ones(len(prior), bool) if held is None else ~held
    pull = np.broadcast_to(np.asarray(penalty, np.float64), prior.shape)
    weights = np.where(free, prior, 0.0).astype(np.float64)
    truth = np.zeros((rows, design.features.shape[1]))
    truth[np.arange(rows), target] = 1.0

    def objective(w: Array) -> float:
        return log_loss(design, target, w, share) + float(pull @ (w - prior) ** 2) / 2

    value = objective(weights)
    for _ in range(NEWTON_STEPS):
        chances = softmax(design.logits(weights))
        gradient = design.gradient(share[:, None] * (chances - truth)) + pull * (weights - prior)
        curvature = design.curvature(chances, share) + np.diag(pull + 1e-9)
        step = np.zeros(len(prior))
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient[free])
        value, weights, moved = _descend(objective, value, weights, step)
        if moved < CLOSE:
            break
    return weights


def _descend(
    objective: Callable[[Array], float], value: float, weights: Array, step: Array
) -> tuple[float, Array, float]:
    """The first halving of `step` that does not go up."""
    size = 1.0
    while size > 1e-6:
        trial = weights - size * step
        if (there := objective(trial)) <= value:
            return there, trial, float(np.abs(size * step).max())
        size /= 2
    return value, weights, 0.0


def log_loss(design: DesignMatrix, target: Array, weights: Array, share: Array) -> float:
    """Weighted mean negative log-likelihood, nats."""
    chances = softmax(design.logits(weights))
    picked = chances[np.arange(len(target)), target]
    return float(-(share * np.log(np.maximum(picked, 1e-12))).sum())


def plain(features: Array) -> DesignMatrix:
    """Weights that all classes share, and no others."""
    return DesignMatrix(features, np.zeros((len(features), 0)))
