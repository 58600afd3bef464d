"""The difference of two versions on the same prompts: an exact test, and an interval.

The gate compares report cards by it, and `lora-router compare` two versions. Prompts of one
conversation depend on each other. So the test flips the signs of whole conversations, and the interval takes
its variance from their sums.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
FLIPS = 20_000  # random ones, where the exact distribution is too large
GRID = 4  # scores that are multiples of 1/4 have an exact distribution: right or wrong, and halves of it
MOST_CELLS = 200_000_000  # of the exact distribution's table: a second of work
MOST_SIGNS = 2_000_000  # drawn at once, of 8 bytes each
LARGE = 1_000  # groups: from here on the flipped sum is normal, to more digits than draws would give


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of `new - old` by prompt, in shares of the best possible score, with its 95 % interval.

    `p` is two-sided, and `exact` unless it was drawn or comes from the normal limit. `smallest` is the
    difference that so many prompts would show with a probability of 0.8.
    """

    mean: float
    low: float
    high: float
    p: float
    exact: bool
    rows: int
    groups: int
    better: int
    worse: int
    smallest: float

    @property
    def found(self) -> bool:
        """Whether chance alone would bring such a difference in at most 5 of 100 comparisons."""
        return self.p <= ALPHA


def difference(new: Sequence[float], old: Sequence[float], groups: Sequence[Hashable]) -> Difference:
    """Compare the scores of the same prompts; `groups` has the conversation of each. Needs one prompt.

    The interval is that of Bonett and Price (2012, for pairs of shares) with the variance of cluster sums:
    one pair for each version is added, so that a few hundred equal answers do not have an interval of
    width zero. The test is the sign-flip permutation test, which is McNemar's exact test for single
    prompts that are right or wrong.
    """
    each = np.asarray(new, dtype=float) - np.asarray(old, dtype=float)
    sums, sizes = _grouped(each, groups)
    center, error = _spread(np.append(sums, [1.0, -1.0]), np.append(sizes, [1.0, 1.0]))
    reach = _t_quantile(len(sums) + 1) * error
    p, exact = _sign_flip(sums)
    mean = float(each.mean())
    return Difference(
        mean=mean,
        low=max(-1.0, min(mean, center - reach)),
        high=min(1.0, max(mean, center + reach)),
        p=p,
        exact=exact,
        rows=len(each),
        groups=len(sums),
        better=int((each > 0).sum()),
        worse=int((each < 0).sum()),
        smallest=error * (_t_quantile(len(sums) + 1) + NormalDist().inv_cdf(POWER)),
    )


def _grouped(
    each: NDArray[np.float64], groups: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and size of each group, in the order of their first rows."""
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(group, len(places)) for group in groups], dtype=np.intp)
    sizes = np.bincount(index).astype(np.float64)
    return np.bincount(index, weights=each).astype(np.float64), sizes


def _spread(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float]:
    """Mean over rows and its standard error by groups."""
    mean = sums.sum() / sizes.sum()
    left = sums - mean * sizes
    count = len(sums)
    return float(mean), float(math.sqrt(count / (count - 1) * (left**2).sum()) / sizes.sum())


def _t_quantile(freedom: int) -> float:
    """Of Student's t for a two-sided interval (Abramowitz and Stegun 26.7.5), to 0.1 % from 5 degrees on."""
    z = NormalDist().inv_cdf(1 - ALPHA / 2)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _sign_flip(sums: NDArray[np.float64]) -> tuple[float, bool]:
    """Two-sided p of the sum where each group's sign is a fair coin, and whether it is exact."""
    moving = np.abs(sums[sums != 0])
    if not len(moving):
        return 1.0, True
    steps = np.rint(moving * GRID)
    if np.allclose(steps, moving * GRID) and len(steps) * steps.sum() <= MOST_CELLS:
        return _exact(steps.astype(int), round(abs(sums.sum()) * GRID)), True
    if len(moving) > LARGE:
        score = abs(sums.sum()) / math.sqrt((moving**2).sum())
        return 2 * NormalDist().cdf(-score), False
    signs = np.random.default_rng(0)
    seen, reached, left = abs(sums.sum()) - 1e-9, 0, FLIPS
    while left:
        count = min(left, max(1, MOST_SIGNS // len(moving)))
        flips = signs.integers(0, 2, (count, len(moving)), dtype=np.int8) * 2.0 - 1.0
        reached += int((np.abs(flips @ moving) >= seen).sum())
        left -= count
    return (1 + reached) / (1 + FLIPS), False


def _exact(steps: NDArray[np.int_], seen: int) -> float:
    """P(|sum of signed steps| >= seen), by the distribution of the sum of the positive ones."""
    total = int(steps.sum())
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    for step in steps:
        moved = np.zeros_like(chances)
        moved[step:] = chances[: total + 1 - step]
        chances = 0.5 * (chances + moved)
    signed = 2 * np.arange(total + 1) - total
    return min(1.0, float(chances[np.abs(signed) >= seen].sum()))
