"""What an arm's units say of a metric: its value and how far it varies.

Ratios by the delta method over units, since requests of one unit are not independent: Deng, Knoblich and
Lu 2018, arXiv:1803.06336. Every estimate is, to first order, a mean of a linear combination of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router.experiments.stats.metric import Kind, Metric
from router.experiments.stats.moments import Gradient, Moments, Real, invalid


@dataclass(frozen=True, slots=True)
class Estimate:
    """`n` units, the value, and the variance of the value (its standard error squared)."""

    n: Real
    value: Real
    variance: Real


def linear(kind: Kind, moments: Moments, first: int = 0) -> tuple[Real, Gradient]:
    """Value of a metric whose columns begin at `first`, and its derivatives by the columns' means."""
    if kind is not Kind.RATIO:
        return moments.mean(first), {first: 1.0}
    total = moments.sums[first + 1]
    if np.any(np.asarray(total) == 0):
        raise invalid("denominator", "is 0 in all units of an arm, so there is no ratio")
    value, scale = moments.sums[first] / total, moments.n / total
    return value, {first: scale, first + 1: -value * scale}


def estimate(metric: Metric, moments: Moments) -> Estimate:
    """One arm's estimate, its covariate left aside. Raises InvalidRequest for fewer than two units."""
    check(metric, moments)
    value, gradient = linear(metric.kind, moments)
    return Estimate(moments.n, value, moments.form(gradient, gradient) / moments.n)


def check(metric: Metric, moments: Moments) -> None:
    """Raises InvalidRequest if `moments` cannot be of this metric."""
    if len(moments.sums) != metric.columns:
        raise invalid(metric.name, f"needs {metric.columns} columns, got {len(moments.sums)}")
    if np.any(np.asarray(moments.n) < 2):
        raise invalid(metric.name, "needs two units or more in each arm")
    if metric.kind is Kind.PROPORTION and np.any(moments.sums[0] != np.asarray(moments.products[0])):
        raise invalid(metric.name, "a proportion takes 0 or 1 for each unit; use a mean or a ratio")
