"""`route evaluate`: how well requests are routed, from their votes and the rule that weighs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router.calibration.ballots import Ballot
from router.calibration.bounds import upper
from router.calibration.metrics import area, auroc, confusion, coverage_at, macro_f1, risk_coverage
from router.calibration.report import decision_ece
from router.types import Vote

NONE = "(base)"


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a request. `routed` is the adapter it went to ("" the base); `forced` whom it would go
    to if the base were no choice, with that confidence in [0, 1]; `novelty` grows with strangeness."""

    routed: str
    forced: str
    confidence: float
    novelty: float
    classifier: str = ""


Judge = Callable[[Sequence[Vote]], Judged]


def evaluate(
    known: Sequence[Ballot],
    strange: Sequence[Ballot],
    judge: Judge,
    names: Sequence[str],
    delta: float,
    target: float,
) -> dict[str, Any]:
    """Everything that is told of labelled requests and of out-of-distribution ones."""
    rows = [(ballot, judge(ballot.votes)) for ballot in known]
    meant = [(b, j) for b, j in rows if b.row.label]
    truth, said = [b.row.label for b, _ in meant], [j.forced for _, j in meant]
    confidence = np.array([j.confidence for _, j in rows])
    right = np.array([j.forced == b.row.label for b, j in rows], bool)
    curve = risk_coverage(confidence, right)
    labels = sorted({*truth, *said})
    named = [label for label in (*names, "") if any(b.row.label == label for b, _ in rows)]
    sources = sorted({b.row.source for b, _ in rows})
    return {
        "rows": len(rows),
        "accuracy": _share([t == s for t, s in zip(truth, said, strict=True)]),
        "macro_f1": macro_f1(truth, said, sorted(set(truth))),
        "labels": {label: _of_label(rows, label) for label in named},
        "sources": {name: _counts([r for r in rows if r[0].row.source == name]) for name in sources},
        "confusion": {"labels": [label or NONE for label in labels], "table": confusion(truth, said, labels)},
        "routing": routing(rows, delta),
        "ece": decision_ece(confidence, right),
        "risk_coverage": [list(point) for point in curve],
        "aurc": area(curve),
        "coverage_at_target": coverage_at(curve, target),
        "ood": out_of_distribution([judge(b.votes) for b in strange], [j for _, j in meant], delta),
    }


def routing(rows: Sequence[tuple[Ballot, Judged]], delta: float) -> dict[str, Any]:
    """Coverage of the requests that are for an adapter; error among routed ones, its bound; who decided."""
    routed = [(b, j) for b, j in rows if j.routed]
    wrong = sum(j.routed != b.row.label for b, j in routed)
    deciders = sorted({j.classifier for _, j in routed})
    return {
        "coverage": _share([bool(j.routed) for b, j in rows if b.row.label]),
        "routed": len(routed),
        "errors": wrong,
        "error": wrong / len(routed) if routed else 0.0,
        "error_bound": upper(wrong, len(routed), delta),
        "decided_by": {name: sum(j.classifier == name for _, j in routed) for name in deciders},
    }


def out_of_distribution(
    strange: Sequence[Judged], known: Sequence[Judged], delta: float
) -> dict[str, Any] | None:
    """Share of strange requests that is routed, its upper bound, and how well novelty tells them apart."""
    if not strange:
        return None
    routed = sum(bool(j.routed) for j in strange)
    novelty = (np.array([j.novelty for j in part]) for part in (strange, known))
    return {
        "rows": len(strange),
        "routed": routed,
        "share": routed / len(strange),
        "share_bound": upper(routed, len(strange), delta),
        "auroc": auroc(*novelty) if known else None,
    }


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _of_label(rows: Sequence[tuple[Ballot, Judged]], label: str) -> dict[str, Any]:
    own = _counts([r for r in rows if r[0].row.label == label])
    taken = sum(j.routed == label and b.row.label != label for b, j in rows) if label else 0
    return {**own, "taken": taken}


def _counts(rows: Sequence[tuple[Ballot, Judged]]) -> dict[str, Any]:
    """Rows, those right if forced, those routed, and those of them that went wrong."""
    routed = [(b, j) for b, j in rows if j.routed]
    return {
        "rows": len(rows),
        "right": sum(j.forced == b.row.label for b, j in rows),
        "routed": len(routed),
        "errors": sum(j.routed != b.row.label for b, j in routed),
    }
