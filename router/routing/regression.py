"""Which adapter, or none: softmax regression on n-grams and, with an encoder, sentence vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from router.routing.classifier import Scores
from router.routing.lessons import Lessons
from router.routing.ngrams import SIZE, Block, Ngrams
from router.routing.segments import PARTS
from router.routing.softmax import BIAS, fit_dual, gram, softmax

SHOWN = 8  # adapters named in one answer at most
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Regression:
    """Weights of a fit. Probabilities are softmax(logits / temperature)."""

    names: tuple[str, ...]  # classes; the last is none of the adapters
    ngrams: Ngrams
    weights: Array  # [PARTS, SIZE, classes]
    vector_weights: Array  # [vector size, classes]
    bias: Array  # [classes]
    temperature: float

    def __call__(self, text: str, vector: Array) -> Scores:
        """Probabilities of the best adapters; `vector` is empty where the fit had none."""
        logits = self.bias + vector @ self.vector_weights
        for part, (buckets, found) in enumerate(self.ngrams(text)):
            logits = logits + found @ self.weights[part, buckets]
        chances = softmax(logits / self.temperature)
        best = np.argsort(-chances[:-1])[:SHOWN]
        values = {self.names[i]: float(chances[i]) for i in best}
        return Scores(values, evidence=f"none of them: {chances[-1]:.2f}")


def fit(lessons: Lessons, vectors: Array, penalty: float, temperature: float) -> Regression:
    """Learn from the lessons. `vectors` are [texts, size]; of size 0 where there is no encoder."""
    ngrams = Ngrams(lessons.texts)
    similar = gram(vectors) + BIAS
    for part in range(PARTS):
        similar += gram(ngrams.matrix(part))
    dual = fit_dual(similar.astype(np.float32), lessons.allowed, penalty)
    weights = np.stack([_primal([row[part] for row in ngrams.rows], dual) for part in range(PARTS)])
    ngrams.rows.clear()
    return Regression(lessons.names, ngrams, weights, vectors.T @ dual, BIAS * dual.sum(axis=0), temperature)


def _primal(rows: list[Block], dual: Array) -> Array:
    """Weights [SIZE, classes]: the texts' features times their coefficients."""
    weights = np.zeros((SIZE, dual.shape[1]), np.float32)
    for (buckets, values), coefficients in zip(rows, dual, strict=True):
        weights[buckets] += values[:, None] * coefficients
    return weights
