"""The threshold that labelled requests prove.

Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test" (2021): candidate thresholds that were fixed
before are tested one after the other, each by exact binomial bounds (Clopper and Pearson, 1934). The order is
Wiens' fallback procedure (2003): a candidate that passes hands its level on to the next, looser one, and at
STARTS places a share of `delta` is added, so that strict candidates, which route too few requests to prove
anything, do not end it all. Then the chance that any candidate passes whose true error is above the target is
at most `delta`, however votes, labels and candidates depend on each other.

A candidate that has to bound strange requests, too, passes if both bounds hold at its level; no part of
`delta` is spent twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router.extensions.calibration.rows import RoutedRow

FIRST, LAST, CANDIDATES, STARTS = 0.98, 0.2, 40, 4
BISECTIONS = 60  # far below the precision of a float
MOST_TIMES, STEP = 1000.0, 1.05  # so many times the requests, and the steps in which they grow


def _thresholds() -> tuple[float, ...]:
    """Evenly spaced log-odds, strict to loose."""
    first, last = (math.log(p / (1 - p)) for p in (FIRST, LAST))
    return tuple(round(float(1 / (1 + np.exp(-x))), 4) for x in np.linspace(first, last, CANDIDATES))


THRESHOLDS = _thresholds()


@dataclass(frozen=True, slots=True)
class Goal:
    """At most `target` of the routed requests go wrong, and at most `strange_target` of the strange ones are
    routed, but for a chance of `delta`; shares in (0, 1)."""

    target: float = 0.05
    strange_target: float = 0.05
    delta: float = 0.05


@dataclass(frozen=True, slots=True)
class Tested:
    """What a threshold comes to. Each bound alone holds with a chance of 1 - delta; `strange_bound` is None
    without strange requests. `proven`: the goal is proven for it, also against all other candidates."""

    threshold: float
    routed: int
    errors: int
    error_bound: float
    strange_routed: int
    strange_bound: float | None
    proven: bool = False


def count_at(rows: Sequence[RoutedRow], threshold: float) -> tuple[int, int]:
    """How many are routed, and how many of these to another adapter than theirs."""
    routed = [(name, one.row.label) for one in rows if (name := one.at(threshold).adapter)]
    return len(routed), sum(name != label for name, label in routed)


def try_candidates(known: Sequence[RoutedRow], strange: Sequence[RoutedRow], goal: Goal) -> list[Tested]:
    """All candidates, strict to loose. Rows must not be of the same group."""
    found, level = [], 0.0
    for number, threshold in enumerate(THRESHOLDS):
        if number % (CANDIDATES // STARTS) == 0:
            level += goal.delta / STARTS
        (routed, errors), (away, _) = count_at(known, threshold), count_at(strange, threshold)
        proven = binomial_tail(errors, routed, goal.target) <= level and (
            not strange or binomial_tail(away, len(strange), goal.strange_target) <= level
        )
        level = level if proven else 0.0
        bounds = (
            upper_bound(errors, routed, goal.delta),
            upper_bound(away, len(strange), goal.delta) if strange else None,
        )
        found.append(Tested(threshold, routed, errors, bounds[0], away, bounds[1], proven))
    return found


def loosest_proven(tested: Sequence[Tested]) -> Tested | None:
    """The candidate to take; None where nothing is proven."""
    return next((one for one in reversed(tested) if one.proven), None)


def best_supported(tested: Sequence[Tested], strange: int, goal: Goal) -> tuple[Tested, Goal] | None:
    """The candidate that comes nearest to the goal, and the goal that is proven for it whichever candidate it
    is: each has an equal part of `delta`. None where a target would be 1. `strange`: strange requests."""
    level, best = goal.delta / len(tested), None
    for one in tested:
        error = upper_bound(one.errors, one.routed, level)
        away = upper_bound(one.strange_routed, strange, level) if strange else 0.0
        worst = max(error / goal.target, away / goal.strange_target)
        if max(error, away) < 1 and (best is None or worst <= best[0]):
            best = worst, one, replace(goal, target=error, strange_target=away)
    return None if best is None else best[1:]


def times_needed(tested: Sequence[Tested], strange: int, goal: Goal) -> float | None:
    """About how many times as many requests would prove the goal for some candidate, if they go wrong as
    often as these; None where that is above MOST_TIMES. `strange`: strange requests."""
    level, times = goal.delta / STARTS, 1.0
    while times <= MOST_TIMES:
        for one in tested[:: CANDIDATES // STARTS]:  # whatever becomes of others, these have this level
            routed, errors = int(one.routed * times), math.ceil(one.errors * times)
            away = math.ceil(one.strange_routed * times)
            if binomial_tail(errors, routed, goal.target) <= level and (
                not strange or binomial_tail(away, int(strange * times), goal.strange_target) <= level
            ):
                return times
        times *= STEP
    return None


def upper_bound(errors: int, count: int, delta: float) -> float:
    """One-sided upper bound of the error rate at confidence 1 - `delta`: 1.0 if nothing was seen."""
    if count == 0 or errors >= count:
        return 1.0
    low, high = errors / count, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(errors, count, middle) > delta else (low, middle)
    return high


def binomial_tail(errors: int, count: int, rate: float) -> float:
    """P(at most `errors` of `count` go wrong) if each goes wrong with probability `rate`."""
    if errors >= count or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    k = np.arange(errors)
    # log of the binomial probabilities of 0..errors, by the ratio of each to the one before
    steps = np.log(count - k) - np.log(k + 1) + math.log(rate) - math.log1p(-rate)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + count * math.log1p(-rate)
    return min(1.0, float(np.exp(logs).sum()))
