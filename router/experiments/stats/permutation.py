"""Tests that rest on the randomisation alone, for few and unlike units: slices of time.

They need no normal distribution and no independent units: under no effect the values are what they are, and
only the labels of the arms could have been others. So the test asks how extreme the labels that were drawn
are among all that could have been drawn. Where there are too many of those, some thousand are drawn, and the
ones that happened count as one of them (Phipson and Smyth 2010), so that p is never too small.

Such a test has a fixed size: it is valid at one look, which is planned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

EXACT_PAIRS = 14  # 16,384 ways to label so many pairs: all of them are looked at
DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Shift:
    """The mean effect with its interval, and p two-sided. `above` and `below` are one-sided: small where the
    effect is shown to be above 0, and below it."""

    effect: float
    low: float
    high: float
    p: float
    above: float
    below: float
    exact: bool


def sign_flips(differences: Sequence[float], alpha: float = 0.05) -> Shift:
    """Treatment minus control in pairs, in each of which a fair coin said which of the two is which.

    The interval inverts the test for an effect that adds the same to every pair: its ends are order
    statistics of the means of subsets of the differences (Hartigan 1969). It is infinite where there are too
    few pairs for the level: two-sided at 0.05 below 6. Without pairs nothing is known.
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        return UNKNOWN
    chosen, exact = _subsets(len(values))
    means = (chosen @ values) / chosen.sum(axis=1)
    return _shift(float(values.mean()), means, 1, float(np.abs(values).max()), alpha, exact)


def relabelled(control: Sequence[float], treatment: Sequence[float], alpha: float = 0.05) -> Shift:
    """The difference of the means of two groups, into which units were divided at random in these numbers.

    The interval inverts the test for an effect that adds the same to every unit. Without a unit in both
    groups nothing is known.
    """
    values = np.concatenate((np.asarray(control, np.float64), np.asarray(treatment, np.float64)))
    many, treated = len(values), len(treatment)
    if not 0 < treated < many:
        return UNKNOWN
    chosen, exact = _groups(many, treated)
    there = np.arange(many) >= many - treated
    differences, moved = (
        inside / treated - (each.sum() - inside) / (many - treated)
        for each, inside in ((values, chosen @ values), (there, chosen[:, there].sum(axis=1)))
    )
    other = moved < 1 - 1e-9  # the groups as they are are no other way to divide
    seen = float(values[there].mean() - values[~there].mean())
    thresholds = (seen - differences[other]) / (1 - moved[other])
    same = 1 if exact else 1 + int((~other).sum())
    return _shift(seen, thresholds, same, float(np.abs(values).max()), alpha, exact)


UNKNOWN = Shift(math.nan, -math.inf, math.inf, 1.0, 1.0, 1.0, exact=True)


def _shift(
    effect: float, thresholds: NDArray[np.float64], same: int, scale: float, alpha: float, exact: bool
) -> Shift:
    """From the effects, one for each other way to label, from which on that way is as extreme as what was
    seen; `same` ways are what was seen."""
    found, near = np.sort(thresholds), 1e-12 * scale
    ways = len(found) + same
    above = float(same + (found <= near).sum()) / ways
    below = float(same + (found >= -near).sum()) / ways
    place = math.floor(alpha / 2 * ways + 1e-9) - same + 1
    low, high = (float(found[place - 1]), float(found[-place])) if place > 0 else (-math.inf, math.inf)
    return Shift(effect, low, high, min(1.0, 2 * min(above, below)), above, below, exact)


def pairs_needed(alpha: float) -> int:
    """Fewest pairs with which a difference can be shown at all, two-sided."""
    return math.ceil(1 - math.log2(alpha) - 1e-9)


@lru_cache(maxsize=32)
def _subsets(pairs: int) -> tuple[NDArray[np.float64], bool]:
    """Subsets [subsets, pairs] of the pairs without the empty one, as 0 and 1, and whether these are all."""
    if pairs <= EXACT_PAIRS:
        numbers = np.arange(1, 1 << pairs)
        return ((numbers[:, None] >> np.arange(pairs)) & 1).astype(np.float64), True
    drawn = np.random.default_rng(pairs).integers(0, 2, (DRAWS - 1, pairs)).astype(np.float64)
    return drawn[drawn.sum(axis=1) > 0], False


@lru_cache(maxsize=32)
def _groups(many: int, treated: int) -> tuple[NDArray[np.float64], bool]:
    """Ways [ways, units] to choose the treated units, as 0 and 1, and whether these are all."""
    if math.comb(many, treated) <= DRAWS:
        found = np.zeros((math.comb(many, treated), many))
        for row, places in enumerate(combinations(range(many), treated)):
            found[row, list(places)] = 1.0
        return found, True
    ranks = np.random.default_rng((many, treated)).random((DRAWS - 1, many)).argsort(axis=1).argsort(axis=1)
    return (ranks < treated).astype(np.float64), False


def pairs_for(effect: float, deviation: float, alpha: float, power: float) -> int:
    """Pairs with which an effect is shown with a chance of `power`, where pairs differ by `deviation` without
    an effect: by the t test, which the sign-flip test comes close to (Lehmann and Romano, section 15.2)."""
    from statistics import NormalDist

    normal = NormalDist()
    upper, reach = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    least = pairs_needed(alpha)
    if deviation <= 0:
        return least
    needed = ((upper + reach) * deviation / effect) ** 2 + upper**2 / 2
    return max(least, math.ceil(needed - 1e-9))


def effect_for(pairs: int, deviation: float, alpha: float, power: float) -> float:
    """The effect that so many pairs show, the other way round; infinite where none is."""
    from statistics import NormalDist

    normal = NormalDist()
    upper, reach = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    left = pairs - upper**2 / 2
    if pairs < pairs_needed(alpha) or left <= 0:
        return math.inf
    return (upper + reach) * deviation / math.sqrt(left)
