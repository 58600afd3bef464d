"""Thresholds with a guarantee, by split fixed-sequence testing.

Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test" (2021): rows that were used for fitting order the
candidate thresholds; then each is tested on rows that were not, one after the other, every one at full level
`delta`, until one fails. As the order was fixed before and nothing is tested after the first failure, the
chance that the threshold taken errs more than `target` is at most `delta`, however many there are. A
candidate passes if the Clopper-Pearson bound of the error among routed requests is within `target` and,
where strange requests were given, the bound of the share of them that is routed is within `ood_target`: it
has to pass both, so that no part of `delta` is spent twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from router.calibration.targets import Goal, Tested, Unproven, last_before_failure
from router.extensions.calibration.cascade import Array, Run, outcome_at

BISECTIONS = 60  # far below the precision of a float
Pair = tuple[float, float]


def log_odds_grid(first: float, last: float, count: int) -> tuple[float, ...]:
    """Numbers between `first` and `last`, evenly spaced as log-odds; known before any row is seen."""
    ends = np.log(np.array([first, last]) / (1 - np.array([first, last])))
    return tuple(float(round(1 / (1 + np.exp(-x)), 4)) for x in np.linspace(ends[0], ends[1], count))


THRESHOLDS = log_odds_grid(0.995, 0.2, 50)  # of confidence, strict to loose
NOVELTIES = log_odds_grid(0.02, 0.995, 25)  # of novelty, strict to loose


def certify(
    fitting: tuple[Run, Run], testing: tuple[Run, Run], stops: Sequence[float], goal: Goal
) -> tuple[Tested, tuple[Tested, ...]]:
    """The last candidate before the first that fails, and what all came to, in the order of testing.

    `fitting` and `testing` are (known, strange) rows. Raises Unproven if there are too few rows to
    prove anything, or if not even the first candidate passes.
    """
    rows = (len(testing[0].confidence), len(testing[1].confidence))
    require_enough(*rows, goal)
    order = candidates_in_order(fitting, rows, stops, goal)
    tested = tuple(try_candidate(testing, stops, threshold, limit, goal) for threshold, limit in order)
    return last_before_failure(tested, goal), tested


def try_candidate(
    testing: tuple[Run, Run], stops: Sequence[float], threshold: float, limit: float, goal: Goal
) -> Tested:
    """A candidate on the rows for testing."""
    known, strange = (outcome_at(run, stops, threshold, limit) for run in testing)
    return Tested(
        threshold,
        limit,
        known.count,
        known.errors,
        upper_bound(known.errors, known.count, goal.delta),
        strange.count,
        upper_bound(strange.count, len(strange.routed), goal.delta) if len(strange.routed) else 0.0,
    )


def require_enough(known: int, strange: int, goal: Goal) -> None:
    """Raises Unproven where even a faultless router could not prove the goal on so many rows."""
    least = rows_needed(goal.target, goal.delta)
    if known < least:
        raise Unproven(
            f"{known} requests to test on prove nothing: an error under {goal.target:.0%} at "
            f"{1 - goal.delta:.0%} confidence needs at least {least} that are all routed right, and a third "
            f"of the labelled requests is for fitting: give {_whole(least)} or more, or a looser --target"
        )
    least = rows_needed(goal.ood_target, goal.delta)
    if 0 < strange < least:
        raise Unproven(
            f"{strange} out-of-distribution requests to test on prove nothing: a share under "
            f"{goal.ood_target:.0%} at {1 - goal.delta:.0%} confidence needs at least {least} that all stay "
            f"with the base, and a third is for fitting: give {_whole(least)} or more, or a looser "
            "--ood-target"
        )


def _whole(tested: int) -> int:
    """Requests of which two thirds are so many."""
    return -(-tested * 3 // 2)


# -- the order in which thresholds are tested, learned from rows that they are not tested on
#
# Laufer-Goldshtein, Fisch, Barzilay, Jaakkola, "Efficiently controlling multiple risks with Pareto testing"
# (ICLR 2023): of all candidates only those are tested that route the most at their predicted safety.


def candidates_in_order(
    fitting: tuple[Run, Run], rows: tuple[int, int], stops: Sequence[float], goal: Goal
) -> list[Pair]:
    """(threshold, novelty limit) in the order of testing: from the pair that seems safest to prove on `rows`
    (known, strange) to those that route more. `fitting` is (known, strange)."""
    limits = NOVELTIES if rows[1] else (1.0,)
    known, strange = (sweep(run, stops, THRESHOLDS, limits) for run in fitting)
    counts = [len(run.confidence) for run in fitting]
    scales = [there / max(1, here) for there, here in zip(rows, counts, strict=True)]
    # One or half an error more than there were: few rows say little.
    error = _chances((known.errors + 1) * scales[0], known.routed * scales[0], goal.target)
    strays = (strange.routed + 0.5) * scales[1]
    away = (
        _chances(strays, np.full(strays.shape, rows[1]), goal.ood_target)
        if rows[1]
        else np.zeros(strays.shape)
    )
    foretold = [
        (float(max(error[i, j], away[i, j])), -int(known.routed[i, j]), (threshold, limit))
        for i, threshold in enumerate(THRESHOLDS)
        for j, limit in enumerate(limits)
    ]
    return _front(foretold)


def _chances(errors: Array, counts: Array, rate: float) -> Array:
    """The p-values to expect."""
    wrong, of = np.rint(errors).astype(np.int64), np.rint(counts).astype(np.int64)
    chances = np.ones(of.shape)
    for count in np.unique(of):
        here = (of == count) & (wrong < count)
        chances[here] = binomial_tails(int(count), rate)[wrong[here]]
    return chances


def _front(foretold: Sequence[tuple[float, int, Pair]]) -> list[Pair]:
    """Those than which none is both safer and routes as many, the safest first; never empty."""
    front: list[Pair] = []
    most = 0
    for chance, negative, pair in sorted(foretold):
        if -negative > most and chance < 1.0:
            front.append(pair)
            most = -negative
    return front or [min(foretold)[2]]


@dataclass(frozen=True, slots=True)
class Sweep:
    """[thresholds, limits] requests routed, and routed wrongly."""

    routed: Array
    errors: Array


def sweep(run: Run, stops: Sequence[float], thresholds: Sequence[float], limits: Sequence[float]) -> Sweep:
    """All pairs of thresholds at once; the same as `outcome_at` for each."""
    shape = (len(thresholds), len(limits))
    routed, errors = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    eligible = np.where(run.confidence >= [*stops[:-1], 0.0], run.confidence, -1.0)
    least = np.array(thresholds)[:, None]
    for place, limit in enumerate(limits):
        sure = np.where(run.novelty <= limit, eligible, -1.0)
        open_ = np.ones((len(thresholds), len(sure)), np.bool_)
        for stage in range(len(stops)):
            hit = open_ & (sure[:, stage] >= least)
            routed[:, place] += hit.sum(axis=1)
            errors[:, place] += (hit & ~run.right[:, stage]).sum(axis=1)
            open_ &= ~hit
    return Sweep(routed, errors)


# -- exact binomial bounds (Clopper and Pearson, 1934), in plain numpy


def upper_bound(errors: int, count: int, delta: float) -> float:
    """One-sided upper bound of the error rate at confidence 1 - `delta`: 1.0 if nothing was seen."""
    if count == 0 or errors >= count:
        return 1.0
    low, high = errors / count, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(errors, count, middle) > delta else (low, middle)
    return high


def rows_needed(target: float, delta: float, errors: int = 0) -> int:
    """The fewest requests that prove an error rate under `target` when `errors` of them go wrong."""
    low, high = errors, max(1, errors)
    while binomial_tail(errors, high, target) > delta:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_tail(errors, middle, target) > delta else (low, middle)
    return high


def binomial_tail(errors: int, count: int, rate: float) -> float:
    """P(at most `errors` of `count` go wrong) if each goes wrong with probability `rate`."""
    if errors >= count or rate <= 0:
        return 1.0
    if errors < 0 or rate >= 1:
        return 0.0
    return float(_tails(errors, count, rate)[-1])


@lru_cache(maxsize=512)
def binomial_tails(count: int, rate: float) -> Array:
    """[count + 1] `tail` for every number of errors."""
    return _tails(count, count, rate)


def _tails(last: int, count: int, rate: float) -> Array:
    k = np.arange(last + 1)
    logs = _log_factorials(1 << count.bit_length())
    choose = logs[count] - logs[k] - logs[count - k]
    sums: Array = np.exp(choose + k * math.log(rate) + (count - k) * math.log1p(-rate)).cumsum()
    return np.minimum(sums, 1.0)


@lru_cache
def _log_factorials(last: int) -> Array:
    """log k! for k = 0..last."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, last + 1)))])
