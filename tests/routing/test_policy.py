"""What votes come to, over everything hypothesis can think of, and what variants of a router change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import (
    Axes,
    Axis,
    Binding,
    Calibration,
    Stage,
    TemperatureScaler,
    axes_of,
    binding_of,
)
from router.routing.policy import CalibratedRule, PlainRule, rule_digest, varied
from router.types import AdapterProfile, Reason, RouterVariant, Vote, VoteError

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
SOME = st.frozensets(st.sampled_from(["c0", "c1", "c2", "c3"]))
POLICIES = st.builds(PlainRule, UNIT, UNIT, st.frozensets(st.sampled_from(["c0", "c3"]), max_size=1))
AGREEING = st.builds(PlainRule, UNIT, UNIT, learners=SOME, idle=st.frozensets(st.just("c2"), max_size=1))
SPEAKING = st.builds(
    PlainRule, UNIT, UNIT, learners=st.just(frozenset({"c1", "c2", "c3"})), voices=st.just(frozenset({"c0"}))
)


WEIGHTS = Calibration(
    scalers={"c0": TemperatureScaler(), "c1": TemperatureScaler()},
    stages=(Stage({"c0": 1.0}, stop=0.9), Stage({"c0": 0.5, "c1": 0.5})),
    threshold=0.6,
    novelty_limit=0.7,
    target=0.06,
    delta=0.05,
    ood_target=0.05,
    axes=Axes(),
    binding=Binding({}, {"c0": "", "c1": ""}),
)
KINDS = dict.fromkeys(NAMES, Axis.PLAIN)
POOLING = st.builds(
    PlainRule,
    UNIT,
    UNIT,
    kinds=st.just(KINDS),
    learners=SOME,
    idle=st.frozensets(st.just("c2"), max_size=1),
    weights=st.just(WEIGHTS),
)


@given(POLICIES, ballots(), CANDIDATES)
def test_only_a_sure_candidate_is_chosen(
    policy: PlainRule, votes: list[Vote], candidates: frozenset[str]
) -> None:
    outcome = policy.conclude(votes, candidates)
    assert (outcome.reason is Reason.CLASSIFIED) == bool(outcome.adapter)
    if outcome.adapter:
        scores = next(v.scores for v in votes if v.classifier == outcome.classifier)
        assert outcome.adapter in candidates
        assert scores[outcome.adapter] == outcome.confidence >= policy.threshold
        others = [c for n, c in scores.items() if n in candidates and n != outcome.adapter]
        assert all(outcome.confidence - c >= policy.margin for c in others)


@given(POLICIES | AGREEING | SPEAKING | POOLING, ballots(), CANDIDATES)
def test_stopping_early_concludes_what_all_votes_conclude(
    policy: PlainRule, votes: list[Vote], candidates: frozenset[str]
) -> None:
    """So that a request to be explained goes where it would have gone."""
    cast: list[Vote] = []
    for vote in votes:
        if not policy.counts(vote.classifier):
            continue
        cast.append(vote)
        if policy.settled(cast, candidates):
            break
    assert policy.conclude(cast, candidates) == policy.conclude(votes, candidates)


@pytest.mark.slow
@given(POLICIES, ballots(), CANDIDATES)
def test_fallback_is_for_when_nobody_could_be_asked(
    policy: PlainRule, votes: list[Vote], candidates: frozenset[str]
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
    loose, strict = (PlainRule(t, 0.1).conclude(votes, candidates) for t in sorted((one, two)))
    assert loose.adapter or not strict.adapter


LEARNED = PlainRule(0.5, learners=frozenset({"linear", "embedding", "probe"}), idle=frozenset({"nearest"}))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"linear": {"a": 0.2}, "embedding": {"a": 0.6}}, ("a", 0.6, "embedding")),  # two agree, one is sure
        ({"linear": {"a": 0.6}, "embedding": {"b": 0.4}, "probe": {"a": 0.1}}, ("a", 0.6, "linear")),
        ({"linear": {"a": 0.2}, "embedding": {"a": 0.4}}, ("", 0.4, "embedding")),
        ({"linear": {"b": 0.3}, "embedding": {"a": 0.8}}, ("", 0.8, "embedding")),  # one alone
        ({"linear": {"b": 0.3}, "embedding": {"a": 0.95}}, ("a", 0.95, "embedding")),
        ({"shout": {"b": 0.7}, "linear": {"a": 0.8}, "embedding": {"a": 0.8}}, ("b", 0.7, "shout")),  # a rule
        ({"linear": {"a": 0.4}, "nearest": {"a": 1.0}}, ("", 0.4, "linear")),  # an idle one does not count
    ],
)
def test_learners_decide_together_or_very_sure(scores: Any, expected: tuple[str, float, str]) -> None:
    found = LEARNED.conclude([Vote(name, given) for name, given in scores.items()], {"a", "b"})
    assert (found.adapter, found.confidence, found.classifier) == expected
    assert not LEARNED.counts("nearest")


POOLED = PlainRule(0.5, kinds=KINDS, learners=frozenset({"c0", "c1", "new"}), weights=WEIGHTS)


DOUBT = Vote("c0", {"a": 0.5, "b": 0.2})
AGAINST = (Vote("c0", {"b": 0.4}), Vote("c1", {"b": 0.4}))
BELIEF = (Vote("c0", {"a": 0.5}), Vote("c1", {"a": 0.55}))  # below 0.6, the threshold of the weights
LOST = Vote("c0", error=VoteError.TIMEOUT)


@pytest.mark.parametrize(
    ("votes", "adapter"),
    [
        ((DOUBT, Vote("c1", {"a": 0.9})), "a"),  # 0.5 alone is below the threshold of the weights
        ((DOUBT, Vote("c1", {"b": 0.5, "a": 0.1})), ""),  # they disagree
        ((DOUBT, Vote("c1", {"a": 0.2})), ""),  # strange to both
        ((Vote("c0", {"a": 0.85}),), ""),  # an early stage, below its stop
        ((Vote("c0", {"a": 0.95}),), "a"),
        ((LOST, Vote("c1", {"a": 0.85})), ""),  # a lost vote: the others need to be very sure
        ((LOST, Vote("c1", {"a": 1.0})), "a"),
        ((*AGAINST, Vote("new", {"a": 0.8})), ""),  # a learner that the weights do not know, alone
        ((*AGAINST, Vote("new", {"a": 0.95})), "a"),
        (BELIEF, ""),
        ((Vote("new", {"a": 0.7}), *BELIEF), "a"),  # and as support
        ((*BELIEF, Vote("new", {"a": 0.7})), "a"),
        ((Vote("new", {"b": 0.7}), *BELIEF), ""),
    ],
)
def test_with_weights_the_pooled_confidence_decides(votes: tuple[Vote, ...], adapter: str) -> None:
    assert POOLED.conclude(votes, set(NAMES)).adapter == adapter


def test_the_last_classifier_that_is_there_decides_where_the_others_are_missing() -> None:
    policy = PlainRule(0.5, kinds=KINDS, learners=frozenset({"c0"}) | {"other"}, weights=WEIGHTS)
    assert policy.conclude([Vote("c0", {"a": 0.65})], set(NAMES)).adapter == "a"


def test_the_only_learner_decides_alone() -> None:
    policy = PlainRule(0.5, learners=frozenset({"nearest"}))
    assert policy.conclude([Vote("nearest", {"a": 0.6})], {"a"}).adapter == "a"


def test_the_abstention_tells_the_best_guess() -> None:
    votes = [Vote("x", {"a": 0.2}), Vote("y", {"a": 0.45, "b": 0.44, "z": 0.9}), Vote("w", declined=True)]
    outcome = PlainRule(0.5).conclude(votes, {"a", "b"})
    assert (outcome.adapter, outcome.reason, outcome.confidence, outcome.classifier) == (
        "", Reason.ABSTAINED, 0.45, "y",
    )  # fmt: skip


def test_a_tie_is_not_sure() -> None:
    assert PlainRule(0.5).conclude([Vote("x", {"a": 0.9, "b": 0.9})], {"a", "b"}).adapter == ""


def test_a_required_classifier_that_fails_leaves_it_to_the_base() -> None:
    votes = [Vote("guard", error="raised"), Vote("x", {"a": 1.0})]
    assert PlainRule(0.5).conclude(votes, {"a"}).adapter == "a"
    assert PlainRule(0.5, required=frozenset({"guard"})).conclude(votes, {"a"}).reason is Reason.FALLBACK


LEARNERS = PlainRule(learners=frozenset({"a1", "a2"}), idle=frozenset({"far"}))


def test_votes_that_decide_nothing_lean_to_the_surest_candidate() -> None:
    votes = [Vote("a1", {"a": 0.3, "b": 0.2}), Vote("a2", {"b": 0.4}), Vote("far", {"c": 0.45})]
    found = LEARNERS.leaning(votes, NAMES)
    assert (found.guess, found.confidence) == ("b", 0.4)
    assert LEARNERS.leaning(votes, ["a"]).guess == "a"


def test_the_chance_of_none_grows_with_every_learner_that_says_so() -> None:
    one, two = Vote("a1", {"a": 0.05}), Vote("a2", {"b": 0.05})
    alone, both = LEARNERS.leaning([one], NAMES).none, LEARNERS.leaning([one, two], NAMES).none
    assert alone == pytest.approx(0.95)
    assert both == pytest.approx(0.95**2 / (0.95**2 + 0.05**2))
    lost = Vote("a2", error=VoteError.TIMEOUT)
    assert LEARNERS.leaning([one, lost, Vote("far", {"c": 0.0})], NAMES).none == pytest.approx(0.95)


@given(POLICIES | AGREEING, ballots(), CANDIDATES)
def test_a_leaning_is_to_a_candidate(
    policy: PlainRule, votes: list[Vote], candidates: frozenset[str]
) -> None:
    found = policy.leaning(votes, candidates)
    assert found.guess in candidates | {""}
    assert 0 <= found.none <= 1


# -- texts in another language than the examples

FOREIGN = PlainRule(learners=frozenset({"linear", "embedding"}), voices=frozenset({"voice"}))


@pytest.mark.parametrize(
    ("votes", "adapter"),
    [
        ({"voice": {"a": 0.55}, "linear": {"b": 0.95}, "embedding": {"b": 0.95}}, "a"),  # it decides alone
        ({"voice": {"a": 0.29}, "embedding": {"a": 0.6}}, ""),  # unsure, with a learner
        ({"voice": {"a": 0.31}, "embedding": {"a": 0.6}}, "a"),
        ({"voice": {"a": 0.1}, "linear": {"b": 0.49}, "embedding": {"b": 0.95}}, ""),  # outvoted by two
        ({"voice": {"a": 0.1}, "linear": {"b": 0.51}, "embedding": {"b": 0.95}}, "b"),
        ({"voice": {"a": 0.1}, "linear": {"b": 0.99}}, ""),  # not by one, however sure it is
    ],
)
def test_a_voice_counts_more_than_learners(votes: dict[str, dict[str, float]], adapter: str) -> None:
    cast = [Vote(name, scores) for name, scores in votes.items()]
    found = FOREIGN.conclude(cast, {"a", "b"})
    assert (found.adapter, found.foreign) == (adapter, True)
    assert FOREIGN.settled(cast[:1], {"a", "b"}) is (votes["voice"]["a"] > 0.5)


@given(ballots(), CANDIDATES)
def test_a_voice_without_an_opinion_changes_nothing(votes: list[Vote], candidates: frozenset[str]) -> None:
    policy = PlainRule(learners=frozenset({"c0", "c1"}), voices=frozenset({"voice"}))
    for silent in (Vote("voice", declined=True), Vote("voice", error=VoteError.TIMEOUT)):
        if votes:
            assert policy.conclude([silent, *votes], candidates).adapter == (
                policy.conclude(votes, candidates).adapter
            )


# -- variants of a router

PROFILES = (
    AdapterProfile("legal", "1", domain="legal"),
    AdapterProfile("summary", "1", task="summarization"),
)
ADAPTERS = tuple(p.name for p in PROFILES)
PLAIN = PlainRule(0.5, kinds=axes_of(PROFILES))
CALIBRATION = Calibration(
    scalers={"cheap": TemperatureScaler(), "dear": TemperatureScaler()},
    stages=(Stage({"cheap": 1.0}), Stage({"cheap": 0.5, "dear": 0.5})),
    threshold=0.7,
    novelty_limit=1.0,
    target=0.05,
    delta=0.05,
    ood_target=0.05,
    axes=Axes(),
    binding=binding_of(PROFILES, {"cheap": "cheap/1", "dear": "dear/1"}),
)
RULE = CalibratedRule(CALIBRATION, PLAIN, strict=0.9)
PRINTS = {"cheap": "cheap/1", "dear": "dear/1"}


def test_what_a_variant_leaves_open_stays() -> None:
    assert varied(PLAIN, None) is PLAIN
    assert varied(PLAIN, RouterVariant()) == PLAIN
    assert varied(RULE, RouterVariant()) == RULE


def test_threshold_and_axes() -> None:
    vote = Vote("c", {"legal": 0.6, "summary": 0.55})
    assert PLAIN.conclude([vote], ADAPTERS).adapter == "summary"  # the task beats the topic
    topic = varied(PLAIN, RouterVariant(task_first=False, threshold=0.3))
    sure = Vote("c", {"legal": 0.6, "summary": 0.45})
    assert topic.conclude([sure], ADAPTERS).adapter == "legal"
    strict = varied(PLAIN, RouterVariant(threshold=0.8)).conclude([vote], ADAPTERS)
    assert (strict.reason, strict.threshold) == (Reason.ABSTAINED, 0.8)


def test_fewer_classifiers_are_neither_asked_nor_heard() -> None:
    rule = varied(PLAIN, RouterVariant(classifiers=("dear",)))
    assert (rule.counts("dear"), rule.counts("cheap")) == (True, False)
    votes = Vote("cheap", {"legal": 0.9}), Vote("dear", {"summary": 0.9})
    assert rule.conclude(votes, ADAPTERS).adapter == "summary"
    assert rule.conclude([], ADAPTERS).reason is Reason.FALLBACK


def test_a_calibration_needs_the_strict_threshold_where_it_was_not_proven() -> None:
    votes = Vote("cheap", {"legal": 0.8}), Vote("dear", {"legal": 0.8})
    assert RULE.conclude(votes, ADAPTERS).adapter == "legal"
    for variant in (RouterVariant(task_first=False), RouterVariant(classifiers=("cheap",))):
        found = varied(RULE, variant).conclude(votes, ADAPTERS)
        assert (found.adapter, found.threshold) == ("", 0.9)
    both = varied(RULE, RouterVariant(classifiers=("cheap", "dear")))
    assert both.conclude(votes, ADAPTERS).adapter == "legal"


def test_a_threshold_that_is_said_holds_with_a_calibration_too() -> None:
    votes = Vote("cheap", {"legal": 0.6}), Vote("dear", {"legal": 0.6})
    for variant in (RouterVariant(0.5), RouterVariant(0.5, task_first=False)):
        found = varied(RULE, variant).conclude(votes, ADAPTERS)
        assert (found.adapter, found.threshold) == ("legal", 0.5)


@pytest.mark.parametrize("rule", [PLAIN, RULE], ids=["plain", "calibrated"])
def test_digests_are_of_what_decides(rule: PlainRule | CalibratedRule) -> None:
    variants = (
        None,
        RouterVariant(threshold=0.6),
        RouterVariant(task_first=False),
        RouterVariant(domain_first=False),
        RouterVariant(classifiers=("cheap",)),
    )
    found = [rule_digest(varied(rule, variant), PRINTS) for variant in variants]
    assert len(set(found)) == len(variants)
    assert found == [rule_digest(varied(rule, variant), PRINTS) for variant in variants]
    assert rule_digest(rule, {**PRINTS, "dear": "dear/2"}) != found[0]
    assert rule_digest(rule, dict(reversed(PRINTS.items()))) != found[0]
    assert rule_digest(varied(rule, RouterVariant()), PRINTS) == found[0]


def test_a_digest_does_not_change_with_the_adapters_alone() -> None:
    more = replace(PLAIN, kinds=axes_of((*PROFILES, AdapterProfile("new", "1"))))
    assert rule_digest(more, PRINTS) == rule_digest(PLAIN, PRINTS)
