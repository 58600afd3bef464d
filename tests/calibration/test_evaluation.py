"""What evaluation counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from router.calibration.certify import upper_bound
from router.calibration.evaluation import Decided, evaluate
from router.calibration.rows import Ballot, Row
from router.types import Vote


def ballot(label: str, routed: str, forced: str, confidence: float, source: str = "s") -> Ballot:
    """A row that carries what the judge will say of it."""
    return Ballot(Row("t", label, source), (Vote("c", {forced: confidence}, evidence=routed),))


def judge(votes: Sequence[Vote]) -> Decided:
    (vote,) = votes
    ((forced, confidence),) = vote.scores.items()
    return Decided(vote.evidence, forced, confidence, 1 - confidence, "c")


KNOWN = [
    ballot("a", "a", "a", 0.9),
    ballot("a", "", "a", 0.4),
    ballot("b", "a", "a", 0.8, "other"),
    ballot("b", "b", "b", 0.7, "other"),
    ballot("", "", "b", 0.2),
    ballot("", "b", "b", 0.6),
]
STRANGE = [ballot("", "", "a", 0.1), ballot("", "a", "a", 0.85)]


def test_everything_is_counted() -> None:
    found = evaluate(KNOWN, STRANGE, judge, ["a", "b", "c"], 0.05, 0.4)
    assert (found["rows"], found["accuracy"]) == (6, 0.75)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["labels"] == {
        "a": {"rows": 2, "right": 2, "routed": 1, "errors": 0, "taken": 1},
        "b": {"rows": 2, "right": 1, "routed": 2, "errors": 1, "taken": 1},
        "": {"rows": 2, "right": 0, "routed": 1, "errors": 1, "taken": 0},
    }
    assert found["sources"]["other"] == {"rows": 2, "right": 1, "routed": 2, "errors": 1}
    assert found["confusion"] == {"labels": ["a", "b"], "table": [[2, 0], [1, 1]]}
    assert found["routing"] == {
        "coverage": 0.75, "routed": 4, "errors": 2, "error": 0.5, "error_bound": upper_bound(2, 4, 0.05),
        "decided_by": {"c": 4},
    }  # fmt: skip
    assert found["ood"] == {
        "rows": 2, "routed": 1, "share": 0.5, "share_bound": upper_bound(1, 2, 0.05),
        "auroc": pytest.approx(5 / 8),
    }  # fmt: skip
    assert found["risk_coverage"][0] == [0.9, pytest.approx(1 / 6), 0.0]
    assert found["coverage_at_target"] == pytest.approx(5 / 6)


def test_without_strange_requests() -> None:
    found = evaluate(KNOWN[:1], [], judge, ["a"], 0.05, 0.05)
    assert found["ood"] is None
    assert found["ece"]["ece"] == pytest.approx(0.1)
