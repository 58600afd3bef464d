"""What votes come to, over everything hypothesis can think of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import Axes, Axis, Binding, Calibration, Stage, TemperatureScaler
from router.routing.policy import PlainRule
from router.types import Reason, Vote, VoteError

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
    heard: list[Vote] = []
    for vote in votes:
        if not policy.counts(vote.classifier):
            continue
        heard.append(vote)
        if policy.settled(heard, candidates):
            break
    assert policy.conclude(heard, candidates) == policy.conclude(votes, candidates)


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


def concluded(**scores: dict[str, float]) -> tuple[str, float, str]:
    outcome = LEARNED.conclude([Vote(name, given) for name, given in scores.items()], {"a", "b"})
    return outcome.adapter, outcome.confidence, outcome.classifier


def test_two_learners_that_agree_decide_where_one_of_them_is_sure() -> None:
    assert concluded(linear={"a": 0.2}, embedding={"a": 0.6}) == ("a", 0.6, "embedding")
    assert concluded(linear={"a": 0.6}, embedding={"b": 0.4}, probe={"a": 0.1}) == ("a", 0.6, "linear")
    assert concluded(linear={"a": 0.2}, embedding={"a": 0.4})[0] == ""


def test_one_learner_alone_needs_to_be_very_sure() -> None:
    assert concluded(linear={"b": 0.3}, embedding={"a": 0.8})[0] == ""
    assert concluded(linear={"b": 0.3}, embedding={"a": 0.95}) == ("a", 0.95, "embedding")


POOLED = PlainRule(0.5, kinds=KINDS, learners=frozenset({"c0", "c1", "new"}), weights=WEIGHTS)


def pooled(*votes: Vote) -> str:
    return POOLED.conclude(votes, set(NAMES)).adapter


def test_with_weights_the_pooled_confidence_decides() -> None:
    doubt, belief = Vote("c0", {"a": 0.5, "b": 0.2}), Vote("c1", {"a": 0.9})
    assert pooled(doubt, belief) == "a"  # 0.5 alone is below the threshold of the weights
    assert pooled(doubt, Vote("c1", {"b": 0.5, "a": 0.1})) == ""  # they disagree
    assert pooled(doubt, Vote("c1", {"a": 0.2})) == ""  # strange to both


def test_an_early_stage_decides_only_from_its_stop_on() -> None:
    assert pooled(Vote("c0", {"a": 0.85})) == ""
    assert pooled(Vote("c0", {"a": 0.95})) == "a"


def test_where_a_vote_is_lost_the_others_need_to_be_very_sure() -> None:
    lost = Vote("c0", error=VoteError.TIMEOUT)
    assert pooled(lost, Vote("c1", {"a": 0.85})) == ""
    assert pooled(lost, Vote("c1", {"a": 1.0})) == "a"


def test_a_learner_that_the_weights_do_not_know_needs_to_be_very_sure() -> None:
    doubt = (Vote("c0", {"b": 0.4}), Vote("c1", {"b": 0.4}))
    assert pooled(*doubt, Vote("new", {"a": 0.8})) == ""
    assert pooled(*doubt, Vote("new", {"a": 0.95})) == "a"


def test_a_learner_that_the_weights_do_not_know_supports_the_others() -> None:
    belief = (Vote("c0", {"a": 0.5}), Vote("c1", {"a": 0.55}))
    assert pooled(*belief) == ""  # below 0.6, the threshold of the weights
    assert pooled(Vote("new", {"a": 0.7}), *belief) == "a"
    assert pooled(*belief, Vote("new", {"a": 0.7})) == "a"
    assert pooled(Vote("new", {"b": 0.7}), *belief) == ""


def test_the_last_classifier_that_is_there_decides_where_the_others_are_missing() -> None:
    policy = PlainRule(0.5, kinds=KINDS, learners=frozenset({"c0"}) | {"other"}, weights=WEIGHTS)
    assert policy.conclude([Vote("c0", {"a": 0.65})], set(NAMES)).adapter == "a"


def test_a_rule_that_somebody_wrote_decides_alone() -> None:
    assert concluded(shout={"b": 0.7}, linear={"a": 0.8}, embedding={"a": 0.8}) == ("b", 0.7, "shout")


def test_idle_classifiers_do_not_count() -> None:
    assert concluded(linear={"a": 0.4}, nearest={"a": 1.0})[0] == ""
    assert not LEARNED.counts("nearest")


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


def foreign(*votes: Vote) -> tuple[str, str]:
    found = FOREIGN.conclude(votes, {"a", "b"})
    assert found.foreign
    return found.adapter, found.classifier


def test_a_sure_voice_decides_alone() -> None:
    vote = Vote("voice", {"a": 0.55})
    assert FOREIGN.settled([vote], {"a", "b"})
    assert foreign(vote, Vote("linear", {"b": 0.95}), Vote("embedding", {"b": 0.95})) == ("a", "voice")


@pytest.mark.parametrize(("share", "adapter"), [(0.29, ""), (0.31, "a")])
def test_an_unsure_voice_decides_with_a_learner(share: float, adapter: str) -> None:
    assert foreign(Vote("voice", {"a": share}), Vote("embedding", {"a": 0.6}))[0] == adapter


@pytest.mark.parametrize(("second", "adapter"), [(0.49, ""), (0.51, "b")])
def test_learners_outvote_an_unsure_voice_only_where_both_are_sure(second: float, adapter: str) -> None:
    votes = Vote("voice", {"a": 0.1}), Vote("linear", {"b": second}), Vote("embedding", {"b": 0.95})
    assert foreign(*votes)[0] == adapter


def test_a_learner_alone_does_not_decide_however_sure_it_is() -> None:
    assert foreign(Vote("voice", {"a": 0.1}), Vote("linear", {"b": 0.99}))[0] == ""


@given(ballots(), CANDIDATES)
def test_a_voice_without_an_opinion_changes_nothing(votes: list[Vote], candidates: frozenset[str]) -> None:
    policy = PlainRule(learners=frozenset({"c0", "c1"}), voices=frozenset({"voice"}))
    for silent in (Vote("voice", declined=True), Vote("voice", error=VoteError.TIMEOUT)):
        if votes:
            assert policy.conclude([silent, *votes], candidates).adapter == (
                policy.conclude(votes, candidates).adapter
            )
