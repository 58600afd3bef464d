"""Sums over units from which everything else is computed: one row a unit, kept up to date row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.errors import FieldViolation, InvalidRequest

Array: TypeAlias = NDArray[np.float64]
Real: TypeAlias = float | Array  # an array: many experiments at once, element by element
Gradient: TypeAlias = Mapping[int, Real]  # column to derivative


def invalid(field: str, description: str) -> InvalidRequest:
    """The error for one bad field."""
    return InvalidRequest([FieldViolation(field, description)])


@dataclass(frozen=True, slots=True)
class Moments:
    """`n` units, the sum of each column, and the sums of products of columns i <= j, row by row.

    A unit with several outcomes is one row: its sums. Sums of squares lose digits where the mean is
    more than about 1e6 standard deviations from zero; no metric here is like that.
    """

    n: Real
    sums: tuple[Real, ...]
    products: tuple[Real, ...]

    def __post_init__(self) -> None:
        if len(self.products) != len(self.sums) * (len(self.sums) + 1) // 2:
            raise invalid("products", f"{len(self.sums)} columns need one product for each pair i <= j")

    @staticmethod
    def empty(columns: int) -> Moments:
        """No unit yet."""
        return Moments(0, (0.0,) * columns, (0.0,) * (columns * (columns + 1) // 2))

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
        upper = rows @ rows.T
        pairs = zip(*np.triu_indices(len(rows)), strict=True)
        return Moments(
            rows.shape[1], tuple(map(float, rows.sum(axis=1))), tuple(float(upper[i, j]) for i, j in pairs)
        )

    def merge(self, other: Moments) -> Moments:
        """Of both sets of units."""
        return self._combined(other, 1)

    def without(self, other: Moments) -> Moments:
        """Of the units that are not in `other`, which must all be here."""
        return self._combined(other, -1)

    def plus(self, *row: float) -> Moments:
        """With one more unit."""
        return self.merge(Moments.of(*([value] for value in row)))

    def replaced(self, old: Sequence[float], new: Sequence[float]) -> Moments:
        """With a unit's row changed, as when a later outcome adds to its sums."""
        return self.without(Moments.of(*([v] for v in old))).plus(*new)

    def _combined(self, other: Moments, sign: int) -> Moments:
        if len(other.sums) != len(self.sums):
            raise invalid("columns", f"{len(self.sums)} columns and {len(other.sums)} cannot be merged")
        return Moments(
            self.n + sign * other.n,
            tuple(a + sign * b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + sign * b for a, b in zip(self.products, other.products, strict=True)),
        )

    def mean(self, column: int = 0) -> Real:
        """Mean of a column."""
        return self.sums[column] / self.n

    def product(self, i: int, j: int) -> Real:
        """Sum of products of two columns."""
        i, j = min(i, j), max(i, j)
        return self.products[i * len(self.sums) - i * (i - 1) // 2 + j - i]

    def covariance(self, i: int = 0, j: int = 0) -> Real:
        """Unbiased covariance of two columns; needs two units."""
        found = (self.product(i, j) - self.sums[i] * self.sums[j] / self.n) / (self.n - 1)
        return np.maximum(found, 0.0) if i == j else found

    def form(self, left: Gradient, right: Gradient) -> Real:
        """Covariance of two linear combinations of the columns."""
        return sum(
            (a * b * self.covariance(i, j) for i, a in left.items() for j, b in right.items()), start=0.0
        )
