"""A calibration as the rule that weighs votes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import Axes, Calibration, Stage, TemperatureScaler, axes_of, binding_of
from router.routing.policy import CalibratedRule, Leaning, PlainRule
from router.types import AdapterProfile, Reason, Vote, VoteError

PROFILES = (
    AdapterProfile("legal", "1", domain="legal"),
    AdapterProfile("medical", "1", domain="medical"),
    AdapterProfile("summarization", "1", task="summarization"),
)
NAMES = tuple(p.name for p in PROFILES)
CALIBRATION = Calibration(
    scalers={"cheap": TemperatureScaler(), "dear": TemperatureScaler(temperature=0.5)},
    stages=(
        Stage({"cheap": 1.0}, novelty={"cheap": 1.0}, stop=0.85),
        Stage({"cheap": 0.5, "dear": 0.5}, novelty={"cheap": 0.5, "dear": 0.5}),
    ),
    threshold=0.7,
    novelty_limit=0.4,
    target=0.05,
    delta=0.05,
    ood_target=0.05,
    axes=Axes(),
    binding=binding_of(PROFILES, {"cheap": "cheap/1", "dear": "dear/1"}),
    left_out=("probe",),
)
PLAIN = PlainRule(0.5, kinds=axes_of(PROFILES))
RULE = CalibratedRule(CALIBRATION, PLAIN)


def went(rule: CalibratedRule, *votes: Vote) -> tuple[str, Reason, str]:
    found = rule.conclude(votes, NAMES)
    return found.adapter, found.reason, found.classifier


def test_the_first_stage_decides_if_it_is_sure_enough_to_stop() -> None:
    vote = Vote("cheap", {"medical": 0.9})
    assert RULE.settled([vote], NAMES)
    assert went(RULE, vote, Vote("dear", {"legal": 1.0})) == ("medical", Reason.CLASSIFIED, "cheap")


def test_between_threshold_and_stop_the_next_is_asked() -> None:
    votes = Vote("cheap", {"medical": 0.8}), Vote("dear", {"medical": 0.9})
    assert not RULE.settled(votes[:1], NAMES)
    assert went(RULE, *votes) == ("medical", Reason.CLASSIFIED, "dear")
    assert RULE.conclude(votes, NAMES).threshold == 0.7


def test_unsure_votes_can_be_sure_together() -> None:
    alone = Vote("cheap", {"medical": 0.55, "legal": 0.15})
    both = alone, Vote("dear", {"medical": 0.68, "legal": 0.1})
    assert went(RULE, alone)[1] is Reason.ABSTAINED
    assert went(RULE, *both) == ("medical", Reason.CLASSIFIED, "dear")


def test_disagreement_is_left_to_the_base_with_the_best_guess() -> None:
    votes = Vote("cheap", {"medical": 0.6, "legal": 0.3}), Vote("dear", {"legal": 0.6, "medical": 0.35})
    found = RULE.conclude(votes, NAMES)
    assert (found.adapter, found.reason) == ("", Reason.ABSTAINED)
    assert 0.3 < found.confidence < 0.7


def test_a_sure_but_strange_request_is_unfamiliar() -> None:
    strict = replace(RULE, calibration=replace(CALIBRATION, novelty_limit=0.001))
    votes = Vote("cheap", {"medical": 0.9}), Vote("dear", {"medical": 0.9})
    assert went(strict, *votes) == ("", Reason.UNFAMILIAR, "dear")


def test_the_task_takes_the_topics_confidence() -> None:
    votes = (
        Vote("cheap", {"medical": 0.45, "summarization": 0.44}),
        Vote("dear", {"medical": 0.45, "summarization": 0.45}),
    )
    assert went(RULE, *votes)[0] == "summarization"
    off = replace(RULE, plain=replace(PLAIN, axes=Axes(task_first=False)))
    assert went(off, *votes)[1] is Reason.ABSTAINED


@pytest.mark.parametrize("vote", [Vote("dear", error="timeout"), Vote("cheap", error="raised")])
def test_a_lost_vote_asks_for_more_confidence(vote: Vote) -> None:
    other = Vote("cheap" if vote.classifier == "dear" else "dear", {"medical": 0.87})
    votes = sorted((vote, other), key=lambda v: v.classifier)
    assert RULE.conclude(votes, NAMES).threshold == (0.9 if vote.classifier == "cheap" else 0.7)
    assert (
        RULE.conclude([Vote("cheap", {"medical": 0.75}), Vote("dear", error="timeout")], NAMES).adapter == ""
    )


def test_another_set_needs_strict_confidence() -> None:
    stale = replace(RULE, differences=("adapter cooking is new",))
    sure = Vote("cheap", {"medical": 0.87})
    assert went(RULE, sure)[0] == "medical"
    assert went(stale, sure)[0] == ""
    assert stale.conclude([sure], NAMES).threshold == 0.9
    assert went(stale, Vote("shout", {"legal": 0.95}), sure) == ("legal", Reason.CLASSIFIED, "shout")
    assert went(stale, Vote("shout", {"legal": 0.85}), sure)[0] == ""


def test_who_was_left_out_is_not_asked() -> None:
    assert not RULE.counts("probe")
    assert RULE.counts("cheap")
    assert went(RULE, Vote("probe", {"legal": 1.0}), Vote("cheap", {"medical": 0.9}))[0] == "medical"


def test_nobody_to_ask_and_required_ones_that_fail() -> None:
    assert went(RULE, Vote("cheap", error="timeout"), Vote("dear", error="timeout"))[1] is Reason.FALLBACK
    careful = replace(RULE, plain=replace(PLAIN, required=frozenset({"dear"})))
    unsure = Vote("cheap", {"medical": 0.6})
    assert went(careful, unsure, Vote("dear", error="raised")) == ("", Reason.FALLBACK, "dear")


def test_only_candidates_are_chosen() -> None:
    votes = [Vote("cheap", {"medical": 0.95})]
    assert RULE.conclude(votes, {"legal", "summarization"}).adapter == ""


UNIT = st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1), min_size=1)
BALLOT = st.tuples(*(
    st.one_of(
        st.builds(Vote, st.just(name), UNIT),
        st.just(Vote(name, declined=True)),
        st.just(Vote(name, error="timeout")),
    )
    for name in ("cheap", "probe", "dear")
))  # fmt: skip


@given(BALLOT, st.frozensets(st.sampled_from(NAMES)), st.booleans())
def test_stopping_early_concludes_what_all_votes_conclude(
    votes: tuple[Vote, ...], candidates: frozenset[str], stale: bool
) -> None:
    rule = replace(RULE, differences=("other",) if stale else ())
    heard = []
    for vote in votes:
        if rule.counts(vote.classifier):
            heard.append(vote)
            if rule.settled(heard, candidates):
                break
    assert rule.conclude(heard, candidates) == rule.conclude(votes, candidates)


@given(BALLOT, st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_threshold_never_routes_more(votes: tuple[Vote, ...], one: float, two: float) -> None:
    loose, strict = (
        replace(RULE, calibration=replace(CALIBRATION, threshold=t)).conclude(votes, NAMES)
        for t in sorted((one, two))
    )
    assert loose.adapter or not strict.adapter


def test_votes_that_decide_nothing_lean_as_the_calibration_weighs_them() -> None:
    votes = Vote("cheap", {"medical": 0.6, "legal": 0.3}), Vote("dear", {"legal": 0.6, "medical": 0.35})
    found = RULE.leaning(votes, NAMES)
    assert (found.guess, found.confidence) == ("legal", RULE.conclude(votes, NAMES).confidence)
    assert found.none == RULE.calibration.opinion(votes, PLAIN.kinds).none
    assert RULE.leaning([Vote("unknown", {"legal": 0.6})], NAMES) == Leaning()
    assert RULE.leaning(votes, ["medical"]).guess == "medical"


# -- texts in another language than the examples

SPOKEN = CalibratedRule(CALIBRATION, replace(PLAIN, learners=frozenset(NAMES), voices=frozenset({"voice"})))


def test_a_text_in_another_language_is_decided_without_the_calibration() -> None:
    votes = Vote("voice", {"legal": 0.6}), Vote("cheap", {"medical": 0.99})
    assert SPOKEN.settled(votes[:1], NAMES)
    found = SPOKEN.conclude(votes, NAMES)
    assert (found.adapter, found.foreign, found.threshold) == ("legal", True, 0.5)
    assert SPOKEN.leaning([Vote("voice", {"legal": 0.2}), votes[1]], NAMES).guess == "legal"


@pytest.mark.parametrize("silent", [Vote("voice", declined=True), Vote("voice", error=VoteError.TIMEOUT)])
def test_a_voice_without_an_opinion_leaves_the_calibration_in_force(silent: Vote) -> None:
    votes = Vote("cheap", {"medical": 0.8}), Vote("dear", {"medical": 0.9})
    assert not SPOKEN.settled([silent], NAMES)
    assert SPOKEN.conclude([silent, *votes], NAMES) == RULE.conclude(votes, NAMES)
