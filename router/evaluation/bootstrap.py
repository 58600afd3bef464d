"""Paired bootstrap intervals (Efron and Tibshirani 1993; for text, Koehn 2004, aclanthology.org/W04-3250)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.evaluation.metrics import Scorer


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """As reports have it."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True, slots=True)
class Resampled:
    """A score on all rows, and on each of the resampled sets of rows."""

    value: float
    draws: NDArray[np.float64]

    def estimate(self) -> Estimate:
        """The score with its interval."""
        low, high = np.percentile(self.draws, [2.5, 97.5])
        return Estimate(self.value, float(low), float(high))

    def rounded(self) -> dict[str, float]:
        """The estimate as reports have it."""
        return self.estimate().rounded()

    def minus(self, other: Resampled) -> Estimate:
        """The difference with its interval, paired: both saw the same rows in every draw."""
        return Resampled(self.value - other.value, self.draws - other.draws).estimate()


def resample(scorer: Scorer, rows: int, samples: int = 2000, seed: int = 0) -> Resampled:
    """Score `samples` sets of `rows` rows drawn with replacement; equal seeds draw equal sets."""
    generator = np.random.default_rng(seed)
    draws = np.array([scorer.score(generator.integers(0, rows, rows)) for _ in range(samples)])
    return Resampled(scorer.score(np.arange(rows)), draws)
