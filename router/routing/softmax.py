"""Penalised softmax regression on a few thousand rows of any features, in numpy.

The dual form: rows meet only in their inner products (kernel logistic regression, Keerthi et al. 2005),
so wide features cost one product. Rows may allow several classes: such a row teaches that it is one of
them, not which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances: Array = powers / powers.sum(axis=-1, keepdims=True)
    return chances


def fit_dual(gram: Array, allowed: Array, penalty: float, iterations: int) -> Array:
    """Coefficients [rows, classes] by accelerated gradient steps (Nesterov 1983).

    `gram` [rows, rows] inner products, a constant feature included; `allowed` [rows, classes] 1 where a row
    may be of that class. Weights of the features are then `features.T @ coefficients`. Classes have equal
    shares of the loss.
    """
    weight = balance(allowed)
    bound = 0.5 * float(np.abs(gram * weight).sum(axis=1).max()) + penalty
    dual = ahead = np.zeros_like(allowed)
    momentum = 1.0
    for _ in range(iterations):
        chances = softmax(_product(gram, ahead))
        target = chances * allowed
        target /= np.maximum(target.sum(axis=1, keepdims=True), 1e-9)
        step = ahead - (weight[:, None] * (chances - target) + penalty * ahead) / bound
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = step + (momentum - 1) / following * (step - dual)
        dual, momentum = step, following
    return dual


def balance(allowed: Array) -> Array:
    """Row weights that sum to 1, each class with the same share of them."""
    single = allowed.sum(axis=1) == 1
    counts = np.maximum(allowed[single].sum(axis=0), 1)
    weight = (allowed / counts).max(axis=1)
    shares: Array = (weight / weight.sum()).astype(np.float32)
    return shares


def _product(left: Array, right: Array) -> Array:
    """Matrix product in pieces too small for BLAS to start threads, which would fight the engine's."""
    rows = max(16, 250_000 // right.size)
    return np.concatenate([left[i : i + rows] @ right for i in range(0, len(left), rows)])
