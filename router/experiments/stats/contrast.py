"""Two arms against each other: treatment - (scale * control + offset), 0 where a claim just holds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from router.experiments.stats.estimates import Estimate
from router.experiments.stats.moments import Array, Real


@dataclass(frozen=True, slots=True)
class Line:
    """The claim that treatment equals scale * control + offset."""

    scale: float = 1.0
    offset: float = 0.0


EQUAL = Line()


@dataclass(frozen=True, slots=True)
class Contrast:
    """`n` units of both arms, the difference from the line, and its variance."""

    n: Real
    value: Real
    variance: Real

    @property
    def z(self) -> Array:
        """The difference in standard errors; 0 where nothing varies and nothing differs."""
        value, error = np.asarray(self.value, np.float64), np.sqrt(self.variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(value == 0, 0.0, value / error)


def contrast(control: Estimate, treatment: Estimate, line: Line = EQUAL) -> Contrast:
    """The difference of two independent arms from a line."""
    return Contrast(
        control.n + treatment.n,
        treatment.value - line.scale * control.value - line.offset,
        treatment.variance + line.scale**2 * control.variance,
    )


def fixed_interval(difference: Contrast, alpha: float = 0.05) -> tuple[float, float]:
    """The usual interval, valid for a single look at a size fixed beforehand: for comparison only."""
    half = NormalDist().inv_cdf(1 - alpha / 2) * float(np.sqrt(difference.variance))
    return float(difference.value) - half, float(difference.value) + half


def relative_interval(control: Estimate, treatment: Estimate, bound: float) -> tuple[float, float] | None:
    """All r for which treatment = (1 + r) control lies within `bound` standard errors (Fieller 1954).

    None where control is not shown to differ from 0: then no relative effect can be told.
    """
    c, t = float(control.value), float(treatment.value)
    square, v, w = bound**2, float(control.variance), float(treatment.variance)
    a = c * c - square * v
    if not a > 0:
        return None
    root = np.sqrt(max(0.0, (c * t) ** 2 - a * (t * t - square * w)))
    return float((c * t - root) / a) - 1, float((c * t + root) / a) - 1
