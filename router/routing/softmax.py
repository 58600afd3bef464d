"""Penalised softmax regression by its dual: what is learned is a coefficient for each text and class."""

from __future__ import annotations

from typing import Any

import numpy as np

ITERATIONS = 60
BIAS = 0.1  # square of the constant feature
PENALTY = 1e-3
Array = np.ndarray[Any, Any]


def fit_dual(gram: Array, allowed: Array, penalty: float = PENALTY, iterations: int = ITERATIONS) -> Array:
    """Coefficients [rows, classes], by accelerated gradient steps. `gram` is [rows, rows], BIAS included.

    A row that may be of several classes is taught that it is one of them, not which.
    """
    weight = balance(allowed)
    bound = 0.5 * float(np.abs(gram * weight).sum(axis=1).max()) + penalty
    dual = ahead = np.zeros_like(allowed)
    momentum = 1.0
    for _ in range(iterations):
        chances = softmax(product(gram, ahead))
        target = chances * allowed
        target /= np.maximum(target.sum(axis=1, keepdims=True), 1e-9)
        step = ahead - (weight[:, None] * (chances - target) + penalty * ahead) / bound
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = step + (momentum - 1) / following * (step - dual)
        dual, momentum = step, following
    return dual


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances: Array = powers / powers.sum(axis=-1, keepdims=True)
    return chances


def product(left: Array, right: Array) -> Array:
    """Matrix product in pieces too small for BLAS to start threads, which would fight the engine's."""
    rows = _piece(right)
    return np.concatenate([left[i : i + rows] @ right for i in range(0, len(left), rows)])


def gram(rows: Array) -> Array:
    """`rows @ rows.T` [rows, rows] in such pieces, each product of two rows made once."""
    count = len(rows)
    made = np.empty((count, count), rows.dtype)
    step = _piece(rows)
    for start in range(0, count, step):
        part = rows[start : start + step] @ rows[start:].T
        made[start : start + step, start:] = part
        made[start:, start : start + step] = part.T
    return made


def _piece(right: Array) -> int:
    """Rows on the left of a product with `right` that BLAS still takes in one thread."""
    return max(16, 250_000 // max(1, right.size))


def balance(allowed: Array) -> Array:
    """Row weights that sum to 1, each class with the same share of them."""
    single = allowed.sum(axis=1) == 1
    counts = np.maximum(allowed[single].sum(axis=0), 1)
    weight = (allowed / counts).max(axis=1)
    shares: Array = (weight / weight.sum()).astype(np.float32)
    return shares
