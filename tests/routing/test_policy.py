"""What votes come to, over everything hypothesis can think of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.routing.policy import Policy
from router.types import Reason, Vote

NAMES = ["a", "b", "c", "d"]
UNIT = st.floats(0, 1)
SCORES = st.dictionaries(st.sampled_from(NAMES), UNIT, max_size=4)


@st.composite
def ballots(draw: st.DrawFn) -> list[Vote]:
    votes = []
    for i in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["scores", "declined", "error"]))
        scores = draw(SCORES) if kind == "scores" else {}
        error = "timeout" if kind == "error" else ""
        votes.append(Vote(f"c{i}", scores, declined=kind == "declined", error=error))
    return votes


CANDIDATES = st.frozensets(st.sampled_from(NAMES))
POLICIES = st.builds(Policy, UNIT, UNIT, st.frozensets(st.sampled_from(["c0", "c3"]), max_size=1))


@given(POLICIES, ballots(), CANDIDATES)
def test_only_a_sure_candidate_is_chosen(
    policy: Policy, votes: list[Vote], candidates: frozenset[str]
) -> None:
    outcome = policy.conclude(votes, candidates)
    assert (outcome.reason is Reason.CLASSIFIED) == bool(outcome.adapter)
    if outcome.adapter:
        scores = next(v.scores for v in votes if v.classifier == outcome.classifier)
        assert outcome.adapter in candidates
        assert scores[outcome.adapter] == outcome.confidence >= policy.threshold
        others = [c for n, c in scores.items() if n in candidates and n != outcome.adapter]
        assert all(outcome.confidence - c >= policy.margin for c in others)


@given(POLICIES, ballots(), CANDIDATES)
def test_stopping_early_concludes_what_all_votes_conclude(
    policy: Policy, votes: list[Vote], candidates: frozenset[str]
) -> None:
    """So that a request to be explained goes where it would have gone."""
    heard: list[Vote] = []
    for vote in votes:
        heard.append(vote)
        if policy.settled(heard, candidates):
            break
    assert policy.conclude(heard, candidates) == policy.conclude(votes, candidates)


@pytest.mark.slow
@given(POLICIES, ballots(), CANDIDATES)
def test_fallback_is_for_when_nobody_could_be_asked(
    policy: Policy, votes: list[Vote], candidates: frozenset[str]
) -> None:
    outcome = policy.conclude(votes, candidates)
    failed = all(v.error for v in votes)
    missing = any(v.error and v.classifier in policy.required for v in votes)
    if failed:
        assert outcome.reason is Reason.FALLBACK
    if outcome.reason is Reason.FALLBACK:
        assert failed or missing


@given(ballots(), CANDIDATES, UNIT, UNIT)
def test_a_stricter_threshold_never_routes_more(
    votes: list[Vote], candidates: frozenset[str], one: float, two: float
) -> None:
    loose, strict = (Policy(t, 0.1).conclude(votes, candidates) for t in sorted((one, two)))
    assert loose.adapter or not strict.adapter


def test_the_abstention_tells_the_best_guess() -> None:
    votes = [Vote("x", {"a": 0.2}), Vote("y", {"a": 0.45, "b": 0.44, "z": 0.9}), Vote("w", declined=True)]
    outcome = Policy(0.5).conclude(votes, {"a", "b"})
    assert (outcome.adapter, outcome.reason, outcome.confidence, outcome.classifier) == (
        "", Reason.ABSTAINED, 0.45, "y",
    )  # fmt: skip


def test_a_tie_is_not_sure() -> None:
    assert Policy(0.5).conclude([Vote("x", {"a": 0.9, "b": 0.9})], {"a", "b"}).adapter == ""


def test_a_required_classifier_that_fails_leaves_it_to_the_base() -> None:
    votes = [Vote("guard", error="raised"), Vote("x", {"a": 1.0})]
    assert Policy(0.5).conclude(votes, {"a"}).adapter == "a"
    assert Policy(0.5, required=frozenset({"guard"})).conclude(votes, {"a"}).reason is Reason.FALLBACK
