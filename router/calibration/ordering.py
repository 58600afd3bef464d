"""The order in which thresholds are tested, learned from rows that they are not tested on.

Laufer-Goldshtein, Fisch, Barzilay, Jaakkola, "Efficiently controlling multiple risks with Pareto testing"
(ICLR 2023): of all candidates only those are tested that route the most at their predicted safety.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.calibration.arrays import Array
from router.calibration.bounds import all_tails
from router.calibration.cascade import Run
from router.calibration.goal import Goal

Pair = tuple[float, float]


def grid(first: float, last: float, count: int) -> tuple[float, ...]:
    """Numbers between `first` and `last`, evenly spaced as log-odds; known before any row is seen."""
    ends = np.log(np.array([first, last]) / (1 - np.array([first, last])))
    return tuple(float(round(1 / (1 + np.exp(-x)), 4)) for x in np.linspace(ends[0], ends[1], count))


THRESHOLDS = grid(0.995, 0.2, 50)  # of confidence, strict to loose
NOVELTIES = grid(0.02, 0.995, 25)  # of novelty, strict to loose


@dataclass(frozen=True, slots=True)
class Sweep:
    """[thresholds, limits] requests routed, and routed wrongly."""

    routed: Array
    errors: Array


def sweep(run: Run, stops: Sequence[float], thresholds: Sequence[float], limits: Sequence[float]) -> Sweep:
    """All pairs of thresholds at once; the same as `outcome` for each."""
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


def ordered(
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
        chances[here] = all_tails(int(count), rate)[wrong[here]]
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
