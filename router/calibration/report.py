"""What rows that nothing was fitted on say of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from router.calibration.ballots import Ballot
from router.calibration.cascade import outcome, run
from router.calibration.fit_stages import spoke
from router.calibration.metrics import auroc, ece, interval, macro_f1
from router.calibration.model import Calibration
from router.routing.axes import Axis


def held_out(
    of: Calibration,
    known: Sequence[Ballot],
    strange: Sequence[Ballot],
    kinds: Mapping[str, Axis],
) -> dict[str, Any]:
    """Accuracy, F1, coverage, error, calibration errors and the test of strange requests."""
    names = tuple(kinds)
    votes = run(known, of.stages, of.scalers, of.axes, kinds)
    others = run(strange, of.stages, of.scalers, of.axes, kinds)
    stops = [stage.stop for stage in of.stages]
    there = outcome(votes, stops, of.threshold, of.novelty_limit)
    meant = np.array([bool(ballot.row.label) for ballot in known], bool)
    truth = [ballot.row.label for ballot in known if ballot.row.label]
    said = [names[c] for c in votes.choice[meant, -1]]
    away = outcome(others, stops, of.threshold, of.novelty_limit)
    return {
        "accuracy": float(votes.right[meant, -1].mean()) if meant.any() else 0.0,
        "macro_f1": macro_f1(truth, said, sorted(set(truth))),
        "coverage": float(there.routed[meant].mean()) if meant.any() else 0.0,
        "error": there.errors / there.count if there.count else 0.0,
        "stages": {name: int((there.stage[there.routed] == j).sum()) for j, name in enumerate(of.order)},
        "ece": {name: classifier_ece(of, known, j, names) for j, name in enumerate(of.order)},
        "ece_all": decision_ece(votes.confidence[:, -1], votes.right[:, -1]),
        "ood_auroc": auroc(others.novelty[:, -1], votes.novelty[meant, -1]) if len(strange) else None,
        "ood_routed": away.count / len(strange) if strange else None,
    }


def decision_ece(confidence: Any, right: Any) -> dict[str, Any]:
    """ECE with its bootstrap interval."""
    rows = len(confidence)
    low, high = interval(lambda drawn: ece(confidence[drawn], right[drawn]), rows)
    return {"ece": ece(confidence, right), "low": low, "high": high, "rows": rows}


def classifier_ece(
    of: Calibration, ballots: Sequence[Ballot], place: int, names: Sequence[str]
) -> dict[str, Any]:
    """Of one classifier's surest answer, none included, over the rows on which it spoke."""
    labels = (*names, "")
    confidence, right = [], []
    for ballot in ballots:
        vote = ballot.votes[place]
        if spoke(vote):
            chances = of.scalers[vote.classifier].chances(vote.scores, names)
            best = max(range(len(chances)), key=chances.__getitem__)
            confidence.append(chances[best])
            right.append(labels[best] == ballot.row.label)
    return decision_ece(np.array(confidence), np.array(right, bool))
