"""Rows with the votes of all classifiers on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.calibration.errors import CalibrationError
from router.calibration.rows import Row
from router.types import Vote

MOST_LOST = 0.05  # share of votes that may be lost


@dataclass(frozen=True, slots=True)
class Ballot:
    """One row, and one vote of each classifier in the order in which they are asked."""

    row: Row
    votes: tuple[Vote, ...]


def check(ballots: Sequence[Ballot], classifiers: Sequence[str]) -> None:
    """Raises CalibrationError where votes are missing, lost too often, or not numbers in [0, 1]."""
    if not classifiers:
        raise CalibrationError("no classifier votes: `lora-router plugins doctor` says why")
    for place, name in enumerate(classifiers):
        votes = [ballot.votes[place] for ballot in ballots]
        for vote in votes:
            bad = [s for s in vote.scores.values() if not math.isfinite(s) or not 0 <= s <= 1]
            if bad:
                raise CalibrationError(f"classifier {name} scored {bad[0]}: a confidence lies in 0 to 1")
        lost = [vote.error for vote in votes if vote.error]
        if len(lost) > MOST_LOST * len(votes):
            raise CalibrationError(
                f"classifier {name} lost {len(lost)} of {len(votes)} votes ({lost[0]}): repair it first, "
                "`lora-router plugins doctor` says more, or leave it out with LORA_ROUTER_LOAD_PLUGINS"
            )
