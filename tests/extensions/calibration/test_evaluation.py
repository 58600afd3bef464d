"""What evaluation counts, and its measures against values worked out by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.extensions.calibration.certify import upper_bound
from router.extensions.calibration.evaluation import (
    Decided,
    area_under,
    auroc,
    bootstrap_interval,
    confusion_table,
    coverage_at,
    ece,
    evaluate,
    held_out_report,
    macro_f1,
    risk_coverage,
)
from router.extensions.calibration.rows import Ballot, DataRow
from router.routing.drift import DecisionCounts, proven_counts
from router.routing.policy import CalibratedRule, PlainRule
from router.types import Vote


def ballot(label: str, routed: str, forced: str, confidence: float, source: str = "s") -> Ballot:
    """A row that carries what the judge will say of it."""
    return Ballot(DataRow("t", label, source), (Vote("c", {forced: confidence}, evidence=routed),))


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


def test_macro_f1() -> None:
    truth, said = ["a", "a", "b", "b"], ["a", "b", "b", "c"]
    assert macro_f1(truth, said, ["a", "b"]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert macro_f1(truth, said, ["z"]) == 0
    assert confusion_table(truth, said, ["a", "b", "c"]) == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_ece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.extensions.calibration.evaluation.BINS", 2)
    confidence = np.array([0.9] * 10 + [0.6] * 10)
    right = np.array([True] * 8 + [False] * 2 + [True] * 6 + [False] * 4)
    assert ece(confidence, right) == pytest.approx(0.05)
    assert ece(np.array([]), np.array([])) == 0


def test_the_interval_holds_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(lambda drawn: float(values[drawn].mean()), 400)
    assert low < values.mean() < high
    assert high - low == pytest.approx(4 / 20, rel=0.2)  # two standard errors to each side


def test_auroc() -> None:
    assert auroc(np.array([0.9, 0.4]), np.array([0.1, 0.4])) == pytest.approx(3.5 / 4)
    assert auroc(np.array([1.0]), np.array([0.0])) == 1


@pytest.mark.slow
@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_auroc_counts_pairs(strange: list[int], known: list[int]) -> None:
    pairs = [(s > k) + 0.5 * (s == k) for s in strange for k in known]
    assert auroc(np.array(strange), np.array(known)) == pytest.approx(sum(pairs) / len(pairs))


def test_risk_and_coverage() -> None:
    confidence, right = np.array([0.9, 0.8, 0.8, 0.1]), np.array([True, True, False, False])
    curve = risk_coverage(confidence, right)
    assert curve == [(0.9, 0.25, 0.0), (0.8, 0.75, pytest.approx(1 / 3)), (0.1, 1.0, 0.5)]
    assert coverage_at(curve, 0.4) == 0.75
    assert coverage_at(curve[1:], 0.01) == 0
    assert area_under(curve) == pytest.approx(0.5 / 3 + 0.25 * 0.5)
    assert risk_coverage(np.array([]), np.array([], bool)) == []


@pytest.mark.parametrize("limit", [0.02, 0.2, 1.0])
def test_decisions_that_are_told_are_those_that_a_server_would_make(
    calibration: Any, worlds: Any, setting_of: Any, limit: float
) -> None:
    setting, of = setting_of(), replace(calibration, novelty_limit=limit, report={})
    ballots = worlds(11).ballots(400, none=0.2)
    rule = CalibratedRule(of, PlainRule(axes=setting.axes, kinds=setting.kinds))
    made = Counter(
        one.adapter or one.reason.value for one in (rule.conclude(b.votes, setting.names) for b in ballots)
    )
    told = held_out_report(of, ballots, [], setting.kinds)["decisions"]
    adapters = {name: count for name, count in told["adapters"].items() if count}
    assert Counter(adapters | {k: told[k] for k in ("abstained", "unfamiliar")}) == made
    assert (told["rows"], told["threshold"], told["novelty_limit"]) == (400, of.threshold, limit)
    assert proven_counts(rule) is None
    again = replace(of, report={"held_out": {"decisions": told}})
    assert proven_counts(replace(rule, calibration=again)) == DecisionCounts(
        {"abstained": made["abstained"], "unfamiliar": made["unfamiliar"]}, 400
    )
