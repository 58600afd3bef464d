"""Two answers to the same request, compared: an exact sequential sign test for shadow arms.

Ties tell nothing of which is better and are left out (Dixon and Mood 1946). Among the others, a
beta-binomial mixture against 1/2 (Robbins 1970).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from router.experiments.stats.exact import one_arm, one_arm_interval
from router.experiments.stats.moments import invalid


@dataclass(frozen=True, slots=True)
class Paired:
    """Share of wins among pairs that are no ties, its interval, and the always-valid p-value."""

    wins: int
    losses: int
    ties: int
    share: float
    low: float
    high: float
    p: float


def paired(wins: int, losses: int, ties: int = 0, alpha: float = 0.05) -> Paired:
    """The test at this look; valid at any number of pairs."""
    if min(wins, losses, ties) < 0:
        raise invalid("pairs", "wins, losses and ties must not be negative")
    decided = wins + losses
    low, high = one_arm_interval(wins, losses, alpha)
    p = math.exp(-max(0.0, float(one_arm(wins, losses, 0.5))))
    return Paired(wins, losses, ties, wins / decided if decided else 0.5, low, high, p)
