"""Sums over units from which everything else is computed, and what they say of a metric.

One row a unit, kept up to date row by row. Third powers are kept too: they tell whether an arm's mean may
be treated as normal yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations_with_replacement
from math import inf, isfinite
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.model import Kind

Array: TypeAlias = NDArray[np.float64]
Real: TypeAlias = float | Array  # an array: many experiments at once, element by element
Gradient: TypeAlias = Mapping[int, Real]  # column to derivative


def invalid(field: str, description: str) -> InvalidRequest:
    """The error for one bad field."""
    return InvalidRequest([FieldViolation(field, description)])


@cache
def places(columns: int, power: int) -> Mapping[tuple[int, ...], int]:
    """Where the sum of each product of `power` columns stands: (0, 0), (0, 1), ... or (0, 0, 0), ..."""
    return {at: i for i, at in enumerate(combinations_with_replacement(range(columns), power))}


@dataclass(frozen=True, slots=True)
class Moments:
    """`n` units, the sum of each column, of products of columns i <= j, and of i <= j <= k.

    A unit with several outcomes is one row: its value. `cubes` is empty where they are not known, as for
    plain proportions, which need none. Sums of powers lose digits where the mean is more than about 1e4
    standard deviations from zero; no metric here is like that.
    """

    n: Real
    sums: tuple[Real, ...]
    products: tuple[Real, ...]
    cubes: tuple[Real, ...] = ()

    def __post_init__(self) -> None:
        columns = len(self.sums)
        if len(self.products) != len(places(columns, 2)):
            raise invalid("products", f"{columns} columns need one product for each pair i <= j")
        if self.cubes and len(self.cubes) != len(places(columns, 3)):
            raise invalid("cubes", f"{columns} columns need one product for each i <= j <= k")

    @staticmethod
    def empty(columns: int) -> Moments:
        """No unit yet."""
        return Moments(0, *((0.0,) * len(places(columns, power)) for power in (1, 2, 3)))

    @staticmethod
    def of(*columns: ArrayLike) -> Moments:
        """Of whole columns, each [units], of finite numbers."""
        try:
            rows = np.asarray(columns, np.float64)
        except ValueError as error:
            raise invalid("values", "every column needs one number for each unit") from error
        if rows.ndim != 2:
            raise invalid("values", "every column needs one number for each unit")
        if not np.isfinite(rows).all():
            raise invalid("values", "must be finite numbers")
        sums = (
            tuple(float(np.prod(rows[list(at)], axis=0).sum()) for at in places(len(rows), power))
            for power in (1, 2, 3)
        )
        return Moments(rows.shape[1], *sums)

    def merge(self, other: Moments) -> Moments:
        """Of both sets of units."""
        if len(other.sums) != len(self.sums):
            raise invalid("columns", f"{len(self.sums)} columns and {len(other.sums)} cannot be merged")
        known = self.cubes and other.cubes
        return Moments(
            self.n + other.n,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.products, other.products, strict=True)),
            tuple(a + b for a, b in zip(self.cubes, other.cubes, strict=True)) if known else (),
        )

    def only(self, columns: int) -> Moments:
        """Of the first so many columns."""
        kept = (
            tuple(of[at] for key, at in places(len(self.sums), power).items() if max(key) < columns)
            for power, of in ((2, self.products), (3, self.cubes))
            if of
        )
        return Moments(self.n, self.sums[:columns], *kept)

    def mean(self, column: int = 0) -> Real:
        """Mean of a column."""
        return self.sums[column] / self.n

    def product(self, *at: int) -> Real:
        """Sum of the products of two columns, or of three."""
        kept = self.products if len(at) == 2 else self.cubes
        return kept[places(len(self.sums), len(at))[tuple(sorted(at))]]

    def covariance(self, i: int = 0, j: int = 0) -> Real:
        """Unbiased covariance of two columns; needs two units."""
        found = (self.product(i, j) - self.sums[i] * self.sums[j] / self.n) / (self.n - 1)
        return np.maximum(found, 0.0) if i == j else found

    def form(self, left: Gradient, right: Gradient) -> Real:
        """Covariance of two linear combinations of the columns."""
        return sum(
            (a * b * self.covariance(i, j) for i, a in left.items() for j, b in right.items()), start=0.0
        )

    def third(self, gradient: Gradient) -> Real:
        """Third central moment of a linear combination of the columns; NaN where it is not known."""
        if not self.cubes:
            return np.full(np.shape(self.n), np.nan)
        mean = {i: self.mean(i) for i in gradient}
        total: Real = 0.0
        for i, a in gradient.items():
            for j, b in gradient.items():
                for k, c in gradient.items():
                    drift = sum(mean[x] * self.product(y, z) for x, y, z in ((i, j, k), (j, i, k), (k, i, j)))
                    raw = (self.product(i, j, k) - drift) / self.n + 2 * mean[i] * mean[j] * mean[k]
                    total = total + a * b * c * raw
        return total


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """A metric. Columns: the value (for a ratio numerator, denominator), then the covariate likewise.

    The covariate (CUPED) is the same quantity of the same unit from before the experiment. `bounds` are the
    least and the largest value that a unit can have, because values are capped there; None: there are none.
    """

    name: str
    kind: Kind
    higher_is_better: bool = True
    covariate: bool = False
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise invalid("metric.name", "must not be empty")
        if self.bounds is not None:
            low, high = self.bounds
            if self.kind.rules.has_denominator:
                why = self.kind.rules.uncappable
                raise invalid(f"{self.name}.cap", f"a {self.kind} has no cap of its own: {why}")
            if not (isfinite(low) and isfinite(high) and low < high):
                raise invalid(f"{self.name}.cap", f"must be a finite number above {low:g}, got {high:g}")

    @property
    def columns(self) -> int:
        """How many columns its `Moments` have."""
        return self.kind.rules.columns * (2 if self.covariate else 1)

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def range(self) -> tuple[float, float]:
        """Where units' values lie; infinite where nothing says so."""
        if self.kind.rules.binary:
            return 0.0, 1.0
        return self.bounds or (-inf, inf)


@dataclass(frozen=True, slots=True)
class ArmEstimate:
    """`n` units, the metric's value, and variance and third central moment of one unit's part in it.

    Every estimate is, to first order, the mean of one number a unit; a ratio's by the delta method (Deng,
    Knoblich and Lu 2018, arXiv:1803.06336), since requests of one unit are not independent.
    """

    n: Real
    value: Real
    spread: Real
    third: Real

    @property
    def variance(self) -> Real:
        """Variance of the value: its standard error squared."""
        return self.spread / self.n


def value_and_gradient(kind: Kind, moments: Moments, first: int = 0) -> tuple[Real, Gradient]:
    """Value of a metric whose columns begin at `first`, and its derivatives by the columns' means."""
    if not kind.rules.has_denominator:
        return moments.mean(first), {first: 1.0}
    total = moments.sums[first + 1]
    if np.any(np.asarray(total) == 0):
        raise invalid("denominator", "is 0 in all units of an arm, so there is no ratio")
    value, scale = moments.sums[first] / total, moments.n / total
    return value, {first: scale, first + 1: -value * scale}


def estimate(metric: ComparedMetric, moments: Moments) -> ArmEstimate:
    """One arm's estimate, its covariate left aside. Raises InvalidRequest for fewer than two units."""
    check_moments(metric, moments)
    value, gradient = value_and_gradient(metric.kind, moments)
    return ArmEstimate(moments.n, value, moments.form(gradient, gradient), moments.third(gradient))


def adjusted_estimates(metric: ComparedMetric, arms: Sequence[Moments]) -> list[ArmEstimate]:
    """Estimates of all arms with what the covariate explains taken out (CUPED).

    Deng, Xu, Kohavi and Walker 2013 (WSDM, doi:10.1145/2433396.2433413): y - theta (x - mean x), with theta
    from all arms together, so that the effect stays what it is and its variance shrinks by corr(x, y)^2.
    """
    for moments in arms:
        check_moments(metric, moments)
    everybody, half = reduce(Moments.merge, arms), metric.columns // 2
    _, outcome = value_and_gradient(metric.kind, everybody)
    centre, covariate = value_and_gradient(metric.kind, everybody, half)
    varies = np.asarray(everybody.form(covariate, covariate))
    shared = np.asarray(everybody.form(outcome, covariate))
    theta = np.divide(shared, varies, out=np.zeros_like(varies), where=varies > 0)
    return [_without_past(metric, moments, theta, centre) for moments in arms]


def _without_past(metric: ComparedMetric, moments: Moments, theta: Real, centre: Real) -> ArmEstimate:
    value, outcome = value_and_gradient(metric.kind, moments)
    before, covariate = value_and_gradient(metric.kind, moments, metric.columns // 2)
    gradient = {**outcome, **{column: -theta * slope for column, slope in covariate.items()}}
    return ArmEstimate(
        moments.n,
        value - theta * (before - centre),
        moments.form(gradient, gradient),
        moments.third(gradient),
    )


def estimates_of_both(
    metric: ComparedMetric, control: Moments, treatment: Moments
) -> tuple[ArmEstimate, ArmEstimate]:
    """Both arms' estimates, the covariate used where there is one."""
    if metric.covariate:
        first, second = adjusted_estimates(metric, (control, treatment))
        return first, second
    return estimate(metric, control), estimate(metric, treatment)


def check_moments(metric: ComparedMetric, moments: Moments) -> None:
    """Raises InvalidRequest if `moments` cannot be of this metric."""
    if len(moments.sums) != metric.columns:
        raise invalid(metric.name, f"needs {metric.columns} columns, got {len(moments.sums)}")
    if np.any(np.asarray(moments.n) < 2):
        raise invalid(metric.name, "needs two units or more in each arm")
    if metric.kind.rules.binary and np.any(moments.sums[0] != np.asarray(moments.products[0])):
        raise invalid(metric.name, "a proportion takes 0 or 1 for each unit; use a mean or a ratio")


__all__ = [
    "ArmEstimate",
    "Array",
    "ComparedMetric",
    "Gradient",
    "Kind",
    "Moments",
    "Real",
    "invalid",
    "value_and_gradient",
]
