"""How many units an experiment takes, at one look and at any number of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, invalid

MEASURED_SHARES, MEASURED_FACTORS = (0.1, 0.5), (1.2, 1.1)
"""The smaller arm's share, and by how many fixed sizes 80 % of planned experiments had their verdict at alpha
0.05 (`benchmarks/results/experiments.md`); Brownian motion needs 1.057."""


def fixed_size(
    effect: float,
    variances: tuple[float, float],
    alpha: float = 0.05,
    power: float = 0.8,
    share: float = 0.5,
    under_equality: float | None = None,
) -> int:
    """Units of both arms for a test with one look at its end (two-sided).

    `variances` of one unit's value in control and treatment: p (1 - p) for a proportion. `share` is the
    treatment's of both. `under_equality`: a unit's variance if the arms were equal, where that is known to be
    another, as for proportions (Fleiss, Levin and Paik 2003, chapter 4).
    """
    if effect == 0 or not math.isfinite(effect):
        raise invalid("effect", "must be a finite number other than 0")
    if min(variances) < 0 or sum(variances) <= 0:
        raise invalid("variances", "must not be negative, nor both 0")
    if not 0 < alpha < 1 or not alpha < power < 1:
        raise invalid("power", "alpha must be above 0, power above alpha, both below 1")
    if not 0 < share < 1:
        raise invalid("share", f"must be above 0 and below 1, got {share}")
    normal, (control, treatment) = NormalDist(), variances
    true = control / (1 - share) + treatment / share
    null = true if under_equality is None else under_equality / (share * (1 - share))
    width = normal.inv_cdf(1 - alpha / 2) * math.sqrt(null) + normal.inv_cdf(power) * math.sqrt(true)
    return math.ceil((width / effect) ** 2)


@dataclass(frozen=True, slots=True)
class Size:
    """Units of both arms: with one look at the end, and with any number of looks.

    `units` is the size by which `power` of such experiments have their verdict, `half` that by which half of
    them do; `factor` = units / fixed. `least` is what is needed before there is an interval at all.
    """

    fixed: int
    units: int
    half: int
    factor: float
    least: int
    control: float
    treatment: float


def size_for(
    metric: ComparedMetric,
    control: float,
    effect: float,
    spread: float | None = None,
    share: float = 0.5,
    plan: SequencePlan | None = None,
    power: float = 0.8,
) -> Size:
    """What it takes to show that treatment is `control + effect`, by the planned bound.

    `spread` is the variance of a unit's value (of a ratio: of its part in it); a proportion has its own.
    `share` is the treatment's share of both arms. The answer is what to plan.
    """
    treatment = control + effect
    if metric.kind.rules.binary and spread is None:
        if not (0 <= control <= 1 and 0 <= treatment <= 1):
            raise invalid("effect", f"a proportion of {treatment:g} is none: it lies within 0 and 1")
        middle = (1 - share) * control + share * treatment
        variances, null = (control * (1 - control), treatment * (1 - treatment)), middle * (1 - middle)
    elif spread is None:
        raise invalid("deviation", f"is needed for a {metric.kind.value}: how much do units differ?")
    else:
        variances, null = (spread, spread), spread
    alpha = plan.alpha if plan else 0.05
    fixed = fixed_size(effect, variances, alpha, power, share, null)
    rules = plan or SequencePlan(alpha=alpha)
    half, most = measured_factors(alpha, power, min(share, 1 - share))
    least = _least(metric, rules, share, (1 - share) * control + share * treatment)
    units, middle_size = max(least, math.ceil(most * fixed)), max(least, math.ceil(half * fixed))
    return Size(fixed, units, middle_size, units / fixed, least, control, treatment)


def _least(metric: ComparedMetric, plan: SequencePlan, share: float, middle: float) -> int:
    smaller = min(share, 1 - share)
    bounded = math.isfinite(sum(metric.range))
    least = (plan.burn_in_units if bounded else plan.unbounded_units) / smaller
    if metric.kind.rules.binary:
        rarer = min(middle, 1 - middle)
        events = max(plan.burn_in_events, plan.arm_events / smaller)
        least = max(least, events / rarer) if rarer > 0 else least
    return math.ceil(least)


def planned_factors(
    alpha: float = 0.05, power: float = 0.8, fixed_alpha: float | None = None
) -> tuple[float, float]:
    """By how many times the fixed size half of the experiments, and `power` of them, have their verdict, if
    that is judged by `planned_bound` and the second number is the plan.

    `fixed_alpha`: the level of the fixed test, where it is another. Raises InvalidRequest for a power that
    is not above alpha and below 1.
    """
    level = alpha if fixed_alpha is None else fixed_alpha
    if not 0 < alpha < power < 1 or not 0 < level < power:
        raise invalid("power", "alpha must be above 0, power above alpha, both below 1")
    normal = NormalDist()
    drift = normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)
    barrier = normal.inv_cdf(1 - alpha / 4)
    most = _increasing(lambda size: _passed(barrier * math.sqrt(size), drift, size), power)
    return _increasing(lambda size: _passed(barrier * math.sqrt(most), drift, size), 0.5), most


def measured_factors(alpha: float, power: float, smaller: float) -> tuple[float, float]:
    """By how many times the fixed size half of the experiments, and `power` of them, have their verdict,
    where the smaller arm has this share of both arms' units.

    As for Brownian motion, and as much more as was measured.
    """
    half, most = planned_factors(alpha, power)
    more = float(np.interp(smaller, MEASURED_SHARES, MEASURED_FACTORS)) / planned_factors()[1]
    return half * more, most * more


def _passed(barrier: float, drift: float, by: float) -> float:
    """The chance that Brownian motion with this drift is at the barrier by that time: the reflection
    principle with Girsanov's theorem (Siegmund 1985, chapter 3). The other side is left out."""
    normal, root = NormalDist(), math.sqrt(by)
    turned = normal.cdf(-(drift * by + barrier) / root)
    again = math.exp(min(2 * drift * barrier, 700.0)) * turned
    return normal.cdf((drift * by - barrier) / root) + again


def _increasing(chance: Callable[[float], float], wanted: float) -> float:
    """Where a chance that grows with the size reaches what is wanted, by bisection."""
    low, high = 0.0, 1.0
    while chance(high) < wanted:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) >= wanted else (middle, high)
    return high


def smallest_effect(
    metric: ComparedMetric,
    control: float,
    units: int,
    spread: float | None = None,
    share: float = 0.5,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float | None:
    """The smallest gain that `units` of both arms show with that power at any number of looks;
    None where no gain is (the burn-in alone is longer, or a proportion cannot grow by so much)."""
    room = 1 - control if metric.kind.rules.binary else math.inf
    low, high = 0.0, min(room, 10 * math.sqrt(spread)) if spread is not None else room

    def enough(effect: float) -> bool:
        return (
            size_for(
                metric,
                control,
                effect,
                spread,
                share,
                SequencePlan(alpha=alpha, units=max(200, units)),
                power,
            ).units
            <= units
        )

    if high <= 0 or not enough(high):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
