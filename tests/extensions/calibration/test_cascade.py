"""What comes of the stages at given thresholds."""

from __future__ import annotations

import numpy as np

from router.extensions.calibration.cascade import Run, outcome_at

STOPS = (0.9, 1.01)


def test_the_earliest_sure_stage_decides() -> None:
    run = Run(
        np.zeros((3, 2), np.int64),
        np.array([[0.95, 0.2], [0.85, 0.7], [0.1, 0.3]]),
        np.zeros((3, 2)),
        np.array([[True, False], [False, True], [True, True]]),
    )
    there = outcome_at(run, STOPS, 0.6, 1.0)
    assert there.routed.tolist() == [True, True, False]
    assert there.stage.tolist() == [0, 1, 1]
    assert (there.count, there.errors) == (2, 0)
