"""The effect at equal answer length, beside the raw one.

People and judges prefer longer answers whatever they say (Dubois, Galambosi, Liang and Hashimoto 2024,
arXiv:2404.04475). Analysis of covariance with one slope within arms: raw effect - slope * (difference of
mean lengths). Length comes after assignment, so this describes; it is not a causal effect and gives no
verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.experiments.stats.contrast import Contrast
from router.experiments.stats.moments import Moments, invalid

VALUE, LENGTH = 0, 1


@dataclass(frozen=True, slots=True)
class LengthAdjusted:
    """Raw and adjusted effect, the slope of the value by length, and the mean lengths of both arms."""

    raw: float
    adjusted: Contrast
    slope: float
    lengths: tuple[float, float]


def length_adjusted(control: Moments, treatment: Moments) -> LengthAdjusted:
    """From columns (value, length) of both arms.

    The slope's own variance counts, because unlike a covariate of CUPED the lengths may truly differ.
    """
    arms = (control, treatment)
    if any(len(m.sums) != 2 or float(m.n) < 3 for m in arms):
        raise invalid("length", "needs the columns (value, length) and three units or more in each arm")
    spread = _within(arms, LENGTH, LENGTH)
    slope = _within(arms, VALUE, LENGTH) / spread if spread > 0 else 0.0
    gap = float(treatment.mean(LENGTH)) - float(control.mean(LENGTH))
    raw = float(treatment.mean(VALUE)) - float(control.mean(VALUE))
    residual = {VALUE: 1.0, LENGTH: -slope}
    variance = sum(float(m.form(residual, residual)) / float(m.n) for m in arms)
    if spread > 0:
        left = sum(float(m.form(residual, residual)) * (float(m.n) - 1) for m in arms)
        variance += gap**2 * left / (float(control.n + treatment.n) - 3) / spread
    adjusted = Contrast(control.n + treatment.n, raw - slope * gap, variance)
    return LengthAdjusted(raw, adjusted, slope, (float(control.mean(LENGTH)), float(treatment.mean(LENGTH))))


def _within(arms: Sequence[Moments], i: int, j: int) -> float:
    """Sum of products of deviations from each arm's own means."""
    return sum(float(m.covariance(i, j)) * (float(m.n) - 1) for m in arms)
