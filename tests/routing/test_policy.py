"""What votes come to: each rule once, over everything hypothesis can think of, and what a variant changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.routing.policy import NEAR, SUPPORTING, Axis, Kinds, Leaning, Rule, axis_of, prefer
from router.types import AdapterProfile, Reason, Vote, VoteError

NAMES = ["a", "b", "c", "d"]
VOTERS = [f"c{i}" for i in range(4)]
UNIT = st.floats(0, 1)
SCORES = st.dictionaries(st.sampled_from(NAMES), UNIT, max_size=4)


@st.composite
def ballots(draw: st.DrawFn) -> list[Vote]:
    votes = []
    for name in VOTERS[: draw(st.integers(0, 4))]:
        kind = draw(st.sampled_from(["scores", "declined", "error"]))
        scores = draw(SCORES) if kind == "scores" else {}
        votes.append(Vote(name, scores, kind == "declined", VoteError.TIMEOUT if kind == "error" else ""))
    return votes


CANDIDATES = st.frozensets(st.sampled_from(NAMES))
SOME = st.frozensets(st.sampled_from(VOTERS), max_size=2)
PLAIN = st.builds(Rule, UNIT)
RULES = st.builds(
    Rule,
    UNIT,
    required=SOME,
    kinds=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(Axis)),
    voices=st.just(frozenset()) | st.just(frozenset({"c0"})),
)


# -- who decides


def best_of(vote: Vote, candidates: frozenset[str]) -> tuple[float, list[str]]:
    """The highest confidence of a candidate, and whose it is."""
    among = {name: c for name, c in vote.scores.items() if name in candidates}
    most = max(among.values(), default=0.0)
    return most, [name for name, c in among.items() if c == most]


@given(PLAIN, ballots(), CANDIDATES)
def test_the_first_vote_that_is_sure_of_one_candidate_decides(
    rule: Rule, votes: list[Vote], candidates: frozenset[str]
) -> None:
    expected = ("", "", 0.0)
    for vote in votes:
        confidence, names = best_of(vote, candidates)
        if confidence > 0 and confidence >= rule.threshold and len(names) == 1:
            expected = (names[0], vote.classifier, confidence)
            break
    found = rule.conclude(votes, candidates)
    assert (found.reason is Reason.CLASSIFIED) == bool(expected[0])
    if expected[0]:
        assert (found.adapter, found.classifier, found.confidence) == expected
    else:
        assert found.adapter == ""
    assert found.threshold == rule.threshold


@given(RULES, ballots(), CANDIDATES)
def test_stopping_early_concludes_what_all_votes_conclude(
    rule: Rule, votes: list[Vote], candidates: frozenset[str]
) -> None:
    """So that a request to be explained goes where it would have gone."""
    cast: list[Vote] = []
    for vote in votes:
        cast.append(vote)
        if rule.settled(cast, candidates):
            break
    assert rule.conclude(cast, candidates) == rule.conclude(votes, candidates)


@given(ballots(), CANDIDATES, UNIT, UNIT)
def test_a_higher_threshold_never_routes_more(
    votes: list[Vote], candidates: frozenset[str], one: float, two: float
) -> None:
    loose, strict = (Rule(threshold).conclude(votes, candidates) for threshold in sorted((one, two)))
    assert loose.adapter or not strict.adapter


@given(RULES, ballots(), CANDIDATES)
def test_only_a_candidate_is_chosen(rule: Rule, votes: list[Vote], candidates: frozenset[str]) -> None:
    found = rule.conclude(votes, candidates)
    assert (found.reason is Reason.CLASSIFIED) == bool(found.adapter)
    assert found.adapter in candidates | {""}
    assert 0 <= found.confidence <= 1
    if found.adapter:
        assert found.confidence >= rule.threshold


@pytest.mark.parametrize("scores", [{"a": 0.9, "b": 0.9}, {"a": 0.0}, {}])
def test_a_tie_and_a_vote_for_nobody_decide_nothing(scores: dict[str, float]) -> None:
    votes = [Vote("c0", scores), Vote("c1", {"b": 0.6})]
    assert Rule(0.0).conclude(votes[:1], NAMES).adapter == ""
    assert Rule(0.5).conclude(votes, NAMES).classifier == "c1"


def test_an_abstention_tells_the_best_guess() -> None:
    votes = [Vote("x", {"a": 0.2}), Vote("y", {"a": 0.45, "b": 0.44, "z": 0.9}), Vote("w", declined=True)]
    found = Rule(0.5).conclude(votes, {"a", "b"})
    assert (found.adapter, found.reason) == ("", Reason.ABSTAINED)
    assert (found.confidence, found.classifier) == (0.45, "y")


# -- votes that are lost


@given(RULES, ballots(), CANDIDATES)
def test_fallback_is_for_when_nobody_could_be_asked_or_a_required_vote_is_lost(
    rule: Rule, votes: list[Vote], candidates: frozenset[str]
) -> None:
    found = rule.conclude(votes, candidates)
    if all(vote.error for vote in votes):
        assert found.reason is Reason.FALLBACK
    elif found.reason is Reason.FALLBACK:
        assert any(vote.error and vote.classifier in rule.required for vote in votes)


def test_without_a_required_vote_the_base_answers_unless_another_decided_before() -> None:
    lost, sure = Vote("guard", error=VoteError.RAISED), Vote("x", {"a": 1.0})
    rule = Rule(required=frozenset({"guard"}))
    assert Rule().conclude([lost, sure], {"a"}).adapter == "a"
    broken = rule.conclude([lost, sure], {"a"})
    assert (broken.reason, broken.classifier) == (Reason.FALLBACK, "guard")
    assert rule.conclude([sure, lost], {"a"}).adapter == "a"
    assert rule.settled([lost], {"a"})


# -- what votes lean to that decide nothing


def test_votes_lean_to_the_surest_candidate() -> None:
    votes = [Vote("x", {"a": 0.3, "b": 0.2}), Vote("y", {"b": 0.4})]
    rule = Rule()
    assert rule.leaning(votes, NAMES) == Leaning("b", 0.4, 0.6)
    assert rule.leaning(votes, ["a"]) == Leaning("a", 0.3, 0.7)
    assert rule.leaning([Vote("x", declined=True)], NAMES) == Leaning()


def test_in_another_language_the_voice_alone_leans() -> None:
    votes = [Vote("voice", {"a": 0.2}), Vote("x", {"b": 0.9})]
    assert Rule(voices=frozenset({"voice"})).leaning(votes, NAMES) == Leaning("a", 0.2, 0.8)


@given(RULES, ballots(), CANDIDATES)
def test_a_leaning_is_to_a_candidate(rule: Rule, votes: list[Vote], candidates: frozenset[str]) -> None:
    found = rule.leaning(votes, candidates)
    assert found.guess in candidates | {""}
    assert found.none == (1 - found.confidence if found.guess else 0.0)


# -- texts in another language than the examples


@pytest.mark.parametrize(
    ("votes", "adapter"),
    [
        ({"voice": {"a": 0.55}, "x": {"b": 0.95}}, "a"),  # it is asked first
        ({"voice": {"a": SUPPORTING - 0.01}, "x": {"a": 0.9}}, ""),
        ({"voice": {"a": SUPPORTING}, "x": {"a": 0.6}}, "a"),
        ({"voice": {"a": 0.45}, "x": {"b": 0.95}}, ""),
        ({"voice": {"a": 0.45}, "x": {"b": 0.95}, "y": {"a": 0.7}}, "a"),
    ],
)
def test_an_unsure_voice_has_to_support_what_others_decide(
    votes: dict[str, dict[str, float]], adapter: str
) -> None:
    cast = [Vote(name, scores) for name, scores in votes.items()]
    found = Rule(voices=frozenset({"voice"})).conclude(cast, NAMES)
    assert (found.adapter, found.foreign) == (adapter, True)


@given(ballots(), CANDIDATES)
def test_a_voice_without_an_opinion_changes_nothing(votes: list[Vote], candidates: frozenset[str]) -> None:
    rule = Rule(voices=frozenset({"voice"}))
    expected = rule.conclude(votes, candidates)
    for silent in (Vote("voice", declined=True), Vote("voice", error=VoteError.TIMEOUT)):
        if votes:
            assert rule.conclude([silent, *votes], candidates).adapter == expected.adapter


# -- axes: which of two adapters gets a request that both could take

ADAPTERS = (
    AdapterProfile("medical", "1", domain="medical"),
    AdapterProfile("legal", "1", domain="legal", task="question-answering"),
    AdapterProfile("qa", "1", task="question-answering"),
    AdapterProfile("talk", "1", task="chat"),
    AdapterProfile("summary", "1", task="summarization"),
    AdapterProfile("code", "1", task="code-generation"),
    AdapterProfile("briefs", "1", domain="legal", task="summarization"),
    AdapterProfile("anything", "1"),
)
KINDS = Kinds(ADAPTERS)


def test_the_axis_comes_from_the_manifest() -> None:
    assert dict(KINDS) == {
        "medical": Axis.DOMAIN,
        "legal": Axis.DOMAIN,
        "qa": Axis.PLAIN,
        "talk": Axis.PLAIN,
        "summary": Axis.TASK,
        "code": Axis.TASK,
        "briefs": Axis.BOTH,
        "anything": Axis.BOTH,
    }
    assert axis_of(ADAPTERS[1]) is Axis.DOMAIN


@pytest.mark.parametrize(
    ("case", "confidences", "winner"),
    [
        ("a medical text, to summarize", {"medical": 0.5, "code": 0.45}, "code"),
        ("hardly an instruction", {"medical": 0.6, "summary": 0.3}, "medical"),
        ("a question on tax law", {"qa": 0.5, "legal": 0.42}, "legal"),
        ("a trivia question", {"qa": 0.7, "legal": 0.2}, "qa"),
        ("a task before a domain", {"qa": 0.4, "legal": 0.38, "code": 0.35}, "code"),
        ("the task leads already", {"summary": 0.5, "medical": 0.49}, "summary"),
        ("the stronger task", {"medical": 0.4, "code": 0.36, "summary": 0.33}, "code"),
        ("who has both yields to none", {"briefs": 0.5, "summary": 0.49}, "briefs"),
        ("nothing is near at all", {"medical": 0.06, "summary": 0.05}, "medical"),
        ("who is unknown is on no axis", {"stranger": 0.5, "summary": 0.49}, "stranger"),
        ("nobody", {}, ""),
    ],
)
def test_who_wins_over_whom(case: str, confidences: dict[str, float], winner: str) -> None:
    assert prefer(confidences, KINDS) == winner, case


@given(st.dictionaries(st.sampled_from([a.name for a in ADAPTERS]), UNIT, min_size=1))
def test_the_winner_leads_or_is_near_the_leader_on_a_stronger_axis(confidences: dict[str, float]) -> None:
    winner = prefer(confidences, KINDS)
    most = max(confidences.values())
    if confidences[winner] < most:
        assert confidences[winner] >= NEAR * most
        assert KINDS[winner] in (Axis.TASK, Axis.DOMAIN)


def test_the_winner_decides_where_the_leader_is_sure() -> None:
    vote = Vote("c", {"legal": 0.6, "summary": 0.49})
    found = Rule(0.5, kinds=KINDS).conclude([vote], ["legal", "summary"])
    assert (found.adapter, found.confidence) == ("summary", 0.6)


# -- digests

RULE = Rule(kinds=KINDS)
PRINTS = {"cheap": "cheap/1", "dear": "dear/1"}
TWO = ["legal", "summary"]


def test_digests_are_of_what_decides() -> None:
    rules = (RULE, replace(RULE, threshold=0.6))
    found = [rule.digest(PRINTS) for rule in rules]
    assert len(set(found)) == len(rules)
    assert found == [rule.digest(PRINTS) for rule in rules]
    assert RULE.digest({**PRINTS, "dear": "dear/2"}) != found[0]
    assert RULE.digest(dict(reversed(PRINTS.items()))) != found[0]
    for more in (replace(RULE, required=frozenset({"cheap"})), replace(RULE, voices=frozenset({"cheap"}))):
        assert more.digest(PRINTS) != found[0]


def test_a_digest_does_not_change_with_adapters() -> None:
    more = replace(RULE, kinds=Kinds([*ADAPTERS, AdapterProfile("new", "1")]))
    assert more.digest(PRINTS) == RULE.digest(PRINTS)
