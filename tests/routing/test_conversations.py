"""What routing reads of a request, the rule of conversations, and how a request's turns are classified."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.routing.conversations import (
    ANSWER,
    INSTRUCTIONS,
    MOST_UNDECIDED,
    SURE_NONE,
    SYSTEM_HEAD,
    SYSTEM_TAIL,
    TURNS,
    Classification,
    Previous,
    RecentByTenant,
    RoutingInput,
    TurnDecision,
    TurnResult,
    UserTurn,
    choose,
    continued,
    routing_input,
)
from router.routing.policy import Conclusion, Leaning
from router.types import Continuity, Reason, Request, Role, Turn

LONG = "The mill stands by the river and has a red door. " * 30


def chat(*texts: str) -> Request:
    """Users' and assistant's turns in turn, the user's first."""
    roles: tuple[Role, Role] = ("user", "assistant")
    return Request("r", turns=tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)))


@given(st.text())
def test_a_single_turn_is_read_as_it_is(text: str) -> None:
    expected = RoutingInput((UserTurn(text),))
    assert routing_input(Request("r", turns=(Turn("user", text),))) == expected
    assert routing_input(Request("r", raw_prompt=text)) == expected


PIECES = st.sampled_from(
    ["x", " ", ". ", "\n", "! ", "?", "Translate", "Give only the letter.", ": ", '"', "é", "Word " * 60]
)
ANY = st.lists(PIECES | st.text(max_size=8), max_size=40).map("".join) | st.text()
LONG_ANY = ANY.flatmap(
    lambda text: st.sampled_from([text, text * 40, f"{text}{'x' * 901}", f"{'y' * 30_000}{text}"])
)


@given(LONG_ANY, LONG_ANY, LONG_ANY)
def test_every_text_can_be_read(system: str, first: str, second: str) -> None:
    turns = (Turn("system", system), Turn("user", first), Turn("assistant", second), Turn("user", second))
    reading = routing_input(Request("r", turns=turns))
    for turn in (*reading.latest, *reading.earliest):
        assert turn.without_form in turn.text
        assert turn.text.endswith(turn.without_opening)
        assert turn.stands_alone in (True, False)
        assert len(turn.instruction) <= INSTRUCTIONS
        assert isinstance(turn.with_answer + reading.under_system(turn), str)


def test_the_last_three_user_turns_are_read_with_the_answers_before_them() -> None:
    reading = routing_input(chat("one", "1", "two", "2", "three", "3", "four"))
    assert reading.latest == (
        UserTurn("four", "3", follows=True),
        UserTurn("three", "2", follows=True),
        UserTurn("two", "1", follows=True),
    )
    assert [turn.text for turn in reading.earliest] == ["one", "two", "three"]
    assert not reading.earliest[0].follows


def test_the_last_turn_is_read_whole_and_what_stands_before_it_is_shortened() -> None:
    request = Request(
        "r",
        turns=(Turn("system", LONG), Turn("user", LONG), Turn("assistant", LONG), Turn("user", LONG)),
    )
    reading = routing_input(request)
    assert reading.latest[0].text == LONG
    assert len(reading.latest[1].text) < 1000 < len(LONG)
    assert len(reading.latest[0].answer) == ANSWER
    assert len(reading.system) <= SYSTEM_HEAD + SYSTEM_TAIL + 3
    assert reading.under_system(UserTurn("hello")) == f"{reading.system}\nhello"


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30)), max_size=9)
)
def test_any_turns_can_be_read(said: list[tuple[Role, str]]) -> None:
    reading = routing_input(Request("r", turns=tuple(Turn(role, text) for role, text in said)))
    assert 1 <= len(reading.latest) <= TURNS
    assert len(reading.earliest) <= TURNS
    users = [text for role, text in said if role == "user"]
    assert reading.latest[0].text == (users[-1] if users else "")


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        (
            LONG + "Please translate all of this into French. " + LONG,
            "Please translate all of this into French.",
        ),
        (LONG + "What illness does that point to? " + LONG, "What illness does that point to?"),
        (
            LONG + "(All of this has to be summarized in a line.) " + LONG,
            "(All of this has to be summarized in a line.",
        ),
        ("Summarize this: " + LONG + "What illness does that point to? " + LONG, ""),
        (LONG + "What illness does that point to? " + LONG + "Put it into French.", ""),
        (LONG + "CREATE TABLE mill(id). " + LONG, ""),
        (LONG, ""),
        ("The mill. What illness does that point to? It is red.", ""),
    ],
)
def test_instructions_between_the_ends_of_a_long_text(text: str, instruction: str) -> None:
    assert UserTurn(text).instruction.rstrip() == instruction


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "Which organism is it? A) one B) two. Give only the letter.",
            "Which organism is it? A) one B) two.",
        ),
        (
            "What is 1,000 in four years at 8%? Just the number, two decimals.",
            "What is 1,000 in four years at 8%?",
        ),
        ("Is it safe? Answer yes or no. No explanation.", "Is it safe?"),
        ("Give only the letter.", ""),
        ("Here is a report about mills. Say that in fewer words.", ""),
        ("Is it safe? Answer my question.", ""),
        ("Is it safe?", ""),
        ("", ""),
    ],
)
def test_a_sentence_that_prescribes_the_form_of_the_answer_is_left_out(text: str, left: str) -> None:
    assert UserTurn(text).without_form == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Other question: how do I reverse a string?", "how do I reverse a string?"),
        ("Good. Now for something else: is it safe?", "is it safe?"),
        ("How do I reverse a string in a shell: is there a command?", ""),
        ("shorter.", ""),
        ("Thanks! ", ""),
        ("", ""),
    ],
)
def test_an_opening_is_left_out(text: str, left: str) -> None:
    assert UserTurn(text).without_opening == left


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("tell me a joke about penguins", True),
        ("what shall I cook for my birthday", True),
        ("and how long does it last?", False),
        ("make that a bit funnier for me", False),
        ("shorter please", False),
        ("erzähl mir einen Witz über Pinguine", False),
    ],
)
def test_what_points_at_nothing_stands_alone(text: str, alone: bool) -> None:
    assert UserTurn(text).stands_alone is alone


@pytest.mark.parametrize("unit", ["a", " ", ". ", "? ", "please ", "- ", "\n", "what is it? ", "(\"' "])
def test_a_megabyte_is_read_in_bounded_time(unit: str) -> None:
    turn = UserTurn(unit * (1_000_000 // len(unit)))
    started = time.process_time()
    _ = (turn.instruction, turn.without_form, turn.without_opening, turn.stands_alone)
    assert time.process_time() - started < 2


def concluded(adapter: str = "") -> Conclusion:
    return Conclusion(adapter, Reason.CLASSIFIED if adapter else Reason.ABSTAINED, 0.9 if adapter else 0.2)


def classified(adapter: str = "", guess: str = "", none: float = 0.0) -> Classification:
    """What classifiers come to."""
    return Classification(concluded(adapter), Leaning(guess, 0.6 if guess else 0.0, none))


def judged(adapter: str = "", decided: bool | None = None) -> TurnResult:
    return TurnResult(classified(adapter), bool(adapter) if decided is None else decided)


def summary(chosen: TurnDecision) -> tuple[str, str, str, int]:
    return chosen.conclusion.adapter, chosen.progress, chosen.previous, chosen.undecided


# -- the rule

LEGAL = Previous(concluded("legal"))
BASE = Previous(concluded())


@pytest.mark.parametrize(
    ("previous", "now", "expected"),
    [
        (None, judged("legal"), ("legal", "initial", "", 0)),
        (None, judged(), ("", "initial", "", 1)),
        (None, judged(decided=True), ("", "initial", "", 0)),
        (LEGAL, judged("legal"), ("legal", "kept", "legal", 0)),
        (LEGAL, judged("code"), ("code", "switched", "legal", 0)),
        (LEGAL, judged(), ("legal", "kept", "legal", 1)),
        (LEGAL, judged(decided=True), ("", "switched", "legal", 0)),
        (Previous(concluded("legal"), 1), judged(), ("legal", "kept", "legal", 2)),
        (Previous(concluded("legal"), MOST_UNDECIDED), judged(), ("", "initial", "", 1)),
        (Previous(concluded("legal"), MOST_UNDECIDED), judged("code"), ("code", "switched", "legal", 0)),
        (BASE, judged(), ("", "kept", "base", 1)),
        (BASE, judged("code"), ("code", "switched", "base", 0)),
    ],
)
def test_the_rule(previous: Previous | None, now: TurnResult, expected: tuple[str, str, str, int]) -> None:
    assert summary(continued(previous, now)) == expected


@pytest.mark.parametrize("now", [judged("code"), judged(), judged(decided=True)])
@pytest.mark.parametrize("undecided", [0, 1, MOST_UNDECIDED, 50])
def test_sticky_keeps_an_adapter_whatever_a_turn_is_about(now: TurnResult, undecided: int) -> None:
    chosen = continued(Previous(concluded("legal"), undecided), now, sticky=True)
    assert (chosen.conclusion.adapter, chosen.progress) == ("legal", "kept")


def test_sticky_does_not_keep_the_base() -> None:
    assert summary(continued(BASE, judged("code"), sticky=True)) == ("code", "switched", "base", 0)


def test_only_what_the_turns_own_text_decided_is_alone() -> None:
    assert continued(LEGAL, judged("code")).alone
    assert not continued(LEGAL, judged()).alone
    assert not continued(None, TurnResult(classified("code"), decided=True, alone=False)).alone


# -- a request's turns


class Classifiers:
    """Say what the test has for a text; of other texts they know nothing."""

    def __init__(self, known: Mapping[str, Classification]) -> None:
        self._known = known
        self.asked: list[str] = []

    async def __call__(self, text: str, again: bool = False) -> Classification:
        self.asked.append(text)
        return self._known.get(text, classified())


async def going(
    known: Mapping[str, Classification],
    *texts: str,
    system: str = "",
    mode: Continuity = "adaptive",
    remembered: Previous | None = None,
    fresh: bool = False,
) -> TurnDecision:
    """Where the last of the turns goes; users and assistant speak in turn."""
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    if system:
        turns.insert(0, Turn("system", system))
    return await choose(
        routing_input(Request("r", turns=tuple(turns))), Classifiers(known), mode, remembered, fresh
    )


TORTS = {"torts?": classified("legal"), "java?": classified("code"), "a joke!": classified(none=SURE_NONE)}


async def test_a_follow_up_keeps_the_adapter_of_the_chat() -> None:
    assert summary(await going(TORTS, "torts?", "1", "more")) == ("legal", "kept", "legal", 1)
    assert summary(await going(TORTS, "torts?", "1", "more", "2", "and")) == ("legal", "kept", "legal", 2)


async def test_two_undecided_turns_end_a_conversation() -> None:
    chosen = await going(TORTS, "torts?", "1", "more", "2", "and", "3", "also")
    assert summary(chosen) == ("", "initial", "", 1)


async def test_after_the_end_the_answer_before_a_turn_may_decide() -> None:
    known = {**TORTS, "also\n3": classified("legal")}
    chosen = await going(known, "torts?", "1", "more", "2", "and", "3", "also")
    assert summary(chosen) == ("legal", "initial", "", 0)


async def test_a_turn_that_decides_switches() -> None:
    assert summary(await going(TORTS, "torts?", "1", "java?")) == ("code", "switched", "legal", 0)
    assert summary(await going(TORTS, "torts?", "1", "a joke!")) == ("", "switched", "legal", 0)
    assert summary(await going(TORTS, "a joke!", "1", "hm")) == ("", "kept", "base", 1)


async def test_a_turn_that_stands_alone_needs_less_to_be_for_the_base() -> None:
    known = {**TORTS, "tell me a joke": classified(none=0.96), "make it a joke": classified(none=0.96)}
    assert (await going(known, "torts?", "1", "tell me a joke")).conclusion.adapter == ""
    assert (await going(known, "torts?", "1", "make it a joke")).conclusion.adapter == "legal"


async def test_the_best_guess_counts_where_the_answer_before_it_confirms_it() -> None:
    known = {**TORTS, "the gist": classified(guess="summary"), "the gist\n1": classified("summary")}
    assert summary(await going(known, "torts?", "1", "the gist")) == ("summary", "switched", "legal", 0)
    other = {**known, "the gist\n1": classified("code")}
    assert (await going(other, "torts?", "1", "the gist")).conclusion.adapter == "legal"


async def test_an_opening_is_left_out_of_a_turn_that_follows() -> None:
    assert (await going(TORTS, "torts?", "1", "Other thing: java?")).conclusion.adapter == "code"
    assert (
        await going(TORTS, "Other thing: java?")
    ).conclusion.adapter == ""  # a first turn is read as it is


async def test_a_system_prompt_counts_where_the_turn_under_it_agrees() -> None:
    known = {"To French!": classified("translation"), "my tooth": classified("medical")}
    both = {**known, "To French!\nmy tooth": classified("translation")}
    assert (await going(both, "my tooth", system="To French!")).conclusion.adapter == "translation"
    assert (await going(known, "my tooth", system="To French!")).conclusion.adapter == "medical"
    assert (await going(both, "my tooth", system="Be kind.")).conclusion.adapter == "medical"


async def test_a_system_prompts_guess_counts_where_the_turn_decides_nothing() -> None:
    known = {"Name chapters.": classified(guess="medical"), "Name chapters.\nwarts": classified("medical")}
    assert (await going(known, "warts", system="Name chapters.")).conclusion.adapter == "medical"
    other = {**known, "warts": classified("code")}
    assert (await going(other, "warts", system="Name chapters.")).conclusion.adapter == "code"
    unlike = {**known, "Name chapters.\nwarts": classified("code")}
    assert (await going(unlike, "warts", system="Name chapters.")).conclusion.adapter == ""


async def test_under_a_system_prompt_without_an_adapter_a_turn_is_read_by_itself() -> None:
    asked = Classifiers({"torts?": classified("legal")})
    request = Request("r", turns=(Turn("system", "Be kind."), Turn("user", "torts?")))
    chosen = await choose(routing_input(request), asked, "adaptive")
    assert (asked.asked, chosen.alone) == (["Be kind.", "torts?"], True)


async def test_a_single_decided_turn_is_asked_about_once() -> None:
    asked = Classifiers(TORTS)
    await choose(routing_input(Request("r", turns=(Turn("user", "torts?"),))), asked, "adaptive")
    assert asked.asked == ["torts?"]


async def test_no_more_than_three_user_turns_are_read() -> None:
    asked = Classifiers({})
    texts = [f"word{i}" for i in range(101)]
    turns = tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
    await choose(routing_input(Request("r", turns=turns)), asked, "adaptive")
    assert set(asked.asked) == {"word100", "word98", "word96", "word100\nword99"}


async def test_none_routes_every_turn_by_itself() -> None:
    chosen = await going(TORTS, "torts?", "1", "more", mode="none", remembered=LEGAL)
    assert summary(chosen) == ("", "", "", 0)


async def test_sticky_goes_by_the_first_adapter_of_the_chat() -> None:
    chosen = await going(TORTS, "hm", "1", "torts?", "2", "java?", "3", "java?", "4", "java?", mode="sticky")
    assert chosen.conclusion.adapter == "legal"


async def test_fresh_forgets_the_turns_before() -> None:
    assert summary(await going(TORTS, "torts?", "1", "more", fresh=True)) == ("", "initial", "", 1)
    assert summary(await going(TORTS, "more", remembered=LEGAL, fresh=True)) == ("", "initial", "", 1)


async def test_what_is_remembered_counts_before_the_chats_own_turns() -> None:
    chosen = await going(TORTS, "torts?", "1", "more", remembered=Previous(concluded("code")))
    assert summary(chosen) == ("code", "kept", "code", 1)


# -- what is kept of conversations


def test_a_quiet_conversation_is_over() -> None:
    times = iter([0.0, 1800.0, 1801.0])
    kept: RecentByTenant[str] = RecentByTenant(1800, now=lambda: next(times))
    kept.put("t", "a", "legal")
    assert kept.get("t", "a") == "legal"
    assert kept.get("t", "a") is None
    assert len(kept) == 0


def test_a_tenant_with_many_does_not_push_out_those_of_another() -> None:
    kept: RecentByTenant[int] = RecentByTenant(1800, most=10, each=8)
    kept.put("small", "a", 1)
    for i in range(100):
        kept.put("large", i, i)
        kept.put("other", i, i)
    assert kept.get("small", "a") == 1
    assert len(kept) == 10


@given(st.lists(st.tuples(st.sampled_from("pdg"), st.sampled_from("xyz"), st.integers(0, 9)), max_size=80))
def test_what_is_kept_is_bounded_and_the_latest(done: list[tuple[str, str, int]]) -> None:
    kept: RecentByTenant[Any] = RecentByTenant(1800, most=9, each=4)
    alive: dict[tuple[str, int], None] = {}
    for what, tenant, key in done:
        if what == "p":
            kept.put(tenant, key, key)
            alive[tenant, key] = None
            assert kept.get(tenant, key) == key
        elif what == "d":
            kept.drop(tenant, key)
            alive.pop((tenant, key), None)
            assert kept.get(tenant, key) is None
        assert len(kept) <= min(9, len(alive))
        found = sum(kept.get(t, k) is not None for t, k in alive)
        assert found == len(kept)
