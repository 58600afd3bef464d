"""`route curve`: what every threshold routes and gets wrong, and what more requests would let be proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from router.calibration.model import Axis, Calibration
from router.calibration.targets import Goal
from router.extensions.calibration.cascade import Array, Run, run_cascade
from router.extensions.calibration.certify import NOVELTIES, THRESHOLDS, Sweep, sweep, upper_bound
from router.extensions.calibration.rows import Ballot


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One threshold at the calibration's limit of strangeness.

    Shares lie in [0, 1]; each bound holds with confidence 1 - delta.
    """

    threshold: float
    coverage: float  # of the requests that are for an adapter
    routed: int
    errors: int
    error_bound: float
    strange_routed: int
    strange_bound: float  # 0 where no strange requests were given

    @property
    def error(self) -> float:
        """Among routed requests."""
        return self.errors / self.routed if self.routed else 0.0


@dataclass(frozen=True, slots=True)
class RowForecast:
    """The most that could be proven with so many more requests to test on, if they are like those given."""

    requests: int
    strange: int
    coverage: float
    threshold: float  # 1 where nothing could be


class ThresholdCurve:
    """The cascade of a calibration over labelled requests and strange ones, at any threshold."""

    def __init__(
        self,
        of: Calibration,
        known: Sequence[Ballot],
        strange: Sequence[Ballot],
        kinds: Mapping[str, Axis],
    ) -> None:
        self._of, self._strange = of, len(strange)
        self._meant = np.array([bool(ballot.row.label) for ballot in known], bool)
        self._runs = tuple(
            run_cascade(rows, of.stages, of.scalers, of.axes, kinds) for rows in (known, strange)
        )
        self._stops = [stage.stop for stage in of.stages]

    def points(self, delta: float) -> list[CurvePoint]:
        """One for each candidate threshold and the calibration's own, strict to loose."""
        thresholds = sorted({*THRESHOLDS, self._of.threshold}, reverse=True)
        limits = [self._of.novelty_limit]
        known, strange = (sweep(run, self._stops, thresholds, limits) for run in self._runs)
        covered = self._covered(thresholds, limits)
        return [
            CurvePoint(
                threshold,
                float(covered[i, 0]),
                int(known.routed[i, 0]),
                int(known.errors[i, 0]),
                upper_bound(int(known.errors[i, 0]), int(known.routed[i, 0]), delta),
                away := int(strange.routed[i, 0]),
                upper_bound(away, self._strange, delta) if self._strange else 0.0,
            )
            for i, threshold in enumerate(thresholds)
        ]

    def forecast(self, goal: Goal, requests: int = 0, strange: int = 0) -> RowForecast:
        """With so many more of each: the pair of threshold and limit of strangeness that routes the most of
        those whose bounds would be within the goal at the shares seen here.

        A guess, not a promise: chosen in hindsight, so a little too good.
        """
        limits = NOVELTIES if self._strange else (1.0,)
        known, away = (sweep(run, self._stops, THRESHOLDS, limits) for run in self._runs)
        covered = self._covered(THRESHOLDS, limits)
        rows = max(1, len(self._meant))
        best = RowForecast(requests, strange, 0.0, 1.0)
        for i, threshold in enumerate(THRESHOLDS):
            for j in range(len(limits)):
                if covered[i, j] <= best.coverage or not known.routed[i, j]:
                    continue
                error = _grown(known, i, j, (rows + requests) / rows, goal)
                if error <= goal.target and self._away(away.routed[i, j], strange, goal) <= goal.ood_target:
                    best = RowForecast(requests, strange, float(covered[i, j]), threshold)
        return best

    def _away(self, routed: int, more: int, goal: Goal) -> float:
        """The bound to expect of the share of strange requests routed."""
        if not self._strange:
            return 0.0
        count = self._strange + more
        return upper_bound(round(int(routed) * count / self._strange), count, goal.delta)

    def _covered(self, thresholds: Sequence[float], limits: Sequence[float]) -> Array:
        """[thresholds, limits] share of the requests for an adapter that is routed."""
        run, meant = self._runs[0], self._meant
        kept = Run(run.choice[meant], run.confidence[meant], run.novelty[meant], run.right[meant])
        found: Array = sweep(kept, self._stops, thresholds, limits).routed / max(1, int(meant.sum()))
        return found


def _grown(known: Sweep, i: int, j: int, factor: float, goal: Goal) -> float:
    """The bound to expect of the error where there are `factor` times as many requests."""
    errors, routed = (round(int(counts[i, j]) * factor) for counts in (known.errors, known.routed))
    return upper_bound(errors, routed, goal.delta)
