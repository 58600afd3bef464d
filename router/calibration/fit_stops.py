"""From which confidence a stage need not ask the next classifier."""

from __future__ import annotations

from router.calibration.arrays import Array
from router.calibration.cascade import Run
from router.calibration.goal import Goal
from router.calibration.model import NEVER
from router.calibration.ordering import THRESHOLDS

SHARE = 0.5  # of the target error is what an early stop may cost


def fit_stops(fitting: Run, goal: Goal) -> tuple[float, ...]:
    """One for each stage; the last never needs it.

    The lowest confidence at which, on the rows for fitting, those that stop err clearly less than the target
    and those added last do, too. Whether it was well chosen is not believed but tested: the proof of the
    threshold is over the cascade with its stops.
    """
    stages = fitting.confidence.shape[1]
    return (*(_stop(fitting.confidence[:, j], fitting.right[:, j], goal) for j in range(stages - 1)), NEVER)


def _stop(sure: Array, right: Array, goal: Goal) -> float:
    found = NEVER
    for threshold in THRESHOLDS:
        stopped = sure >= threshold
        wrong = int((stopped & ~right).sum())
        if (wrong + 0.5) / (int(stopped.sum()) + 1) <= SHARE * goal.target:
            found = threshold
        elif wrong:
            break
    return found
