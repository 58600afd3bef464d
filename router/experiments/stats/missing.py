"""Do outcomes go missing more often in one arm than in another? Then the arms that are left are not alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from router.experiments.stats.contrast import Line
from router.experiments.stats.exact import difference_interval, two_arms
from router.experiments.stats.moments import invalid

ALPHA = 0.001
TOLERATED = 0.01


@dataclass(frozen=True, slots=True)
class Missing:
    """Shares of exposed units without an outcome, the interval of their difference, and the alarm."""

    control: float
    treatment: float
    low: float
    high: float
    alarm: bool


def missing_outcomes(
    control: tuple[int, int],
    treatment: tuple[int, int],
    tolerated: float = TOLERATED,
    alpha: float = ALPHA,
) -> Missing:
    """From (exposed units old enough to have an outcome, those that have one) of two arms.

    The alarm is raised when shares are shown to differ by more than `tolerated`; exact, at any look.
    """
    for name, (exposed, seen) in (("control", control), ("treatment", treatment)):
        if not 0 <= seen <= exposed:
            raise invalid(name, f"{seen} units with an outcome among {exposed} exposed ones")
    if not 0 < tolerated < 1:
        raise invalid("tolerated", f"must be above 0 and below 1, got {tolerated}")
    gone = [(exposed - seen, seen) for exposed, seen in (control, treatment)]
    shares = [g / (g + s) if g + s else 0.0 for g, s in gone]
    apart = abs(shares[1] - shares[0]) > tolerated
    edge = Line(offset=math.copysign(tolerated, shares[1] - shares[0]))
    shown = float(two_arms(gone[0], gone[1], edge)) >= -math.log(alpha)
    low, high = difference_interval(gone[0], gone[1], alpha)
    return Missing(shares[0], shares[1], low, high, apart and shown)
