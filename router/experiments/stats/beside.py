"""What stands beside a verdict and gives none: pairs of answers, and the effect at equal answer length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.experiments.stats.compare import Plan
from router.experiments.stats.moments import Moments, invalid
from router.experiments.stats.sequences import one_arm, one_arm_interval, two_sided_bound

VALUE, LENGTH = 0, 1


@dataclass(frozen=True, slots=True)
class Paired:
    """A shadow arm's answers against the served ones, unit by unit.

    `share` is the mean over units of each unit's share of wins among its pairs that are no ties, with its
    interval; `p` is against one half.
    """

    wins: int
    losses: int
    ties: int
    units: int
    share: float
    low: float
    high: float
    p: float


def paired(
    wins: int, losses: int, ties: int = 0, alpha: float = 0.05, *, units: int, share_sum: float
) -> Paired:
    """The test at this look; valid at any number of units.

    `units` have a pair that is no tie; `share_sum` adds up each one's share of wins among these. Pairs of one
    unit are not independent, so a unit counts once however much it asks. Ties tell nothing of which is better
    and are left out (Dixon and Mood 1946). Exact for what lies within 0 and 1 (`sequences`).
    """
    if min(wins, losses, ties, units) < 0:
        raise invalid("pairs", "wins, losses and ties must not be negative")
    if not 0 <= share_sum <= units or units > wins + losses:
        raise invalid("pairs", f"{units} units cannot have {share_sum:g} of {wins + losses} pairs")
    left = units - share_sum
    low, high = one_arm_interval(share_sum, left, alpha)
    p = math.exp(-max(0.0, float(one_arm(share_sum, left, 0.5))))
    return Paired(wins, losses, ties, units, share_sum / units if units else 0.5, low, high, p)


@dataclass(frozen=True, slots=True)
class LengthAdjusted:
    """Raw and adjusted effect, half of the adjusted one's interval (valid at any look, as all are), the slope
    of the value by length, and the mean lengths of both arms."""

    raw: float
    adjusted: float
    half: float
    slope: float
    lengths: tuple[float, float]


def length_adjusted(control: Moments, treatment: Moments, plan: Plan) -> LengthAdjusted:
    """The effect at equal answer length, from columns (value, length) of both arms.

    People and judges prefer longer answers whatever they say (Dubois, Galambosi, Liang and Hashimoto 2024,
    arXiv:2404.04475). Analysis of covariance with one slope within arms: raw effect - slope * (difference of
    mean lengths). Length comes after assignment, so this describes; it is not a causal effect. The slope's
    own variance counts, because unlike a covariate of CUPED the lengths may truly differ.
    """
    arms = (control, treatment)
    if any(len(m.sums) != 2 or float(m.n) < 3 for m in arms):
        raise invalid("length", "needs the columns (value, length) and three units or more in each arm")
    spread = _within(arms, LENGTH, LENGTH)
    slope = _within(arms, VALUE, LENGTH) / spread if spread > 0 else 0.0
    gap = float(treatment.mean(LENGTH)) - float(control.mean(LENGTH))
    raw = float(treatment.mean(VALUE)) - float(control.mean(VALUE))
    residual = {VALUE: 1.0, LENGTH: -slope}
    own = [float(m.form(residual, residual)) for m in arms]
    left = sum(v * (float(m.n) - 1) for v, m in zip(own, arms, strict=True))
    n = float(control.n + treatment.n)
    welch = sum(v / float(m.n) for v, m in zip(own, arms, strict=True))
    variance = max(welch, left / (n - 2) * sum(1 / float(m.n) for m in arms))
    if spread > 0:
        variance += gap**2 * left / (n - 3) / spread
    half = float(two_sided_bound(plan.gain(n, plan.alpha), plan.alpha)) * math.sqrt(variance)
    lengths = (float(control.mean(LENGTH)), float(treatment.mean(LENGTH)))
    return LengthAdjusted(raw, raw - slope * gap, half, slope, lengths)


def _within(arms: Sequence[Moments], i: int, j: int) -> float:
    """Sum of products of deviations from each arm's own means."""
    return sum(float(m.covariance(i, j)) * (float(m.n) - 1) for m in arms)
