"""The rule of conversations, and how a request's turns are asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.routing.conversations import (
    MOST_UNDECIDED,
    SURE_NONE,
    Classification,
    Previous,
    RecentByTenant,
    TurnDecision,
    TurnResult,
    choose,
    continued,
    routing_input,
)
from router.routing.policy import Conclusion, Leaning
from router.types import Continuity, Reason, Request, Turn


def concluded(adapter: str = "") -> Conclusion:
    return Conclusion(adapter, Reason.CLASSIFIED if adapter else Reason.ABSTAINED, 0.9 if adapter else 0.2)


def told(adapter: str = "", guess: str = "", none: float = 0.0) -> Classification:
    """What classifiers come to."""
    return Classification(concluded(adapter), Leaning(guess, 0.6 if guess else 0.0, none))


def judged(adapter: str = "", decided: bool | None = None) -> TurnResult:
    return TurnResult(told(adapter), bool(adapter) if decided is None else decided)


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
    assert not continued(None, TurnResult(told("code"), decided=True, alone=False)).alone


# -- a request's turns


class Classifiers:
    """Say what the test has for a text; of other texts they know nothing."""

    def __init__(self, known: Mapping[str, Classification]) -> None:
        self._known = known
        self.asked: list[str] = []

    async def __call__(self, text: str, again: bool = False) -> Classification:
        self.asked.append(text)
        return self._known.get(text, told())


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


TORTS = {"torts?": told("legal"), "java?": told("code"), "a joke!": told(none=SURE_NONE)}


async def test_a_follow_up_keeps_the_adapter_of_the_chat() -> None:
    assert summary(await going(TORTS, "torts?", "1", "more")) == ("legal", "kept", "legal", 1)
    assert summary(await going(TORTS, "torts?", "1", "more", "2", "and")) == ("legal", "kept", "legal", 2)


async def test_two_undecided_turns_end_a_conversation() -> None:
    chosen = await going(TORTS, "torts?", "1", "more", "2", "and", "3", "also")
    assert summary(chosen) == ("", "initial", "", 1)


async def test_after_the_end_the_answer_before_a_turn_may_decide() -> None:
    known = {**TORTS, "also\n3": told("legal")}
    chosen = await going(known, "torts?", "1", "more", "2", "and", "3", "also")
    assert summary(chosen) == ("legal", "initial", "", 0)


async def test_a_turn_that_decides_switches() -> None:
    assert summary(await going(TORTS, "torts?", "1", "java?")) == ("code", "switched", "legal", 0)
    assert summary(await going(TORTS, "torts?", "1", "a joke!")) == ("", "switched", "legal", 0)
    assert summary(await going(TORTS, "a joke!", "1", "hm")) == ("", "kept", "base", 1)


async def test_a_turn_that_stands_alone_needs_less_to_be_for_the_base() -> None:
    known = {**TORTS, "tell me a joke": told(none=0.96), "make it a joke": told(none=0.96)}
    assert (await going(known, "torts?", "1", "tell me a joke")).conclusion.adapter == ""
    assert (await going(known, "torts?", "1", "make it a joke")).conclusion.adapter == "legal"


async def test_the_best_guess_counts_where_the_answer_before_it_confirms_it() -> None:
    known = {**TORTS, "the gist": told(guess="summary"), "the gist\n1": told("summary")}
    assert summary(await going(known, "torts?", "1", "the gist")) == ("summary", "switched", "legal", 0)
    other = {**known, "the gist\n1": told("code")}
    assert (await going(other, "torts?", "1", "the gist")).conclusion.adapter == "legal"


async def test_an_opening_is_left_out_of_a_turn_that_follows() -> None:
    assert (await going(TORTS, "torts?", "1", "Other thing: java?")).conclusion.adapter == "code"
    assert (
        await going(TORTS, "Other thing: java?")
    ).conclusion.adapter == ""  # a first turn is read as it is


async def test_a_system_prompt_counts_where_the_turn_under_it_agrees() -> None:
    known = {"To French!": told("translation"), "my tooth": told("medical")}
    both = {**known, "To French!\nmy tooth": told("translation")}
    assert (await going(both, "my tooth", system="To French!")).conclusion.adapter == "translation"
    assert (await going(known, "my tooth", system="To French!")).conclusion.adapter == "medical"
    assert (await going(both, "my tooth", system="Be kind.")).conclusion.adapter == "medical"


async def test_a_system_prompts_guess_counts_where_the_turn_decides_nothing() -> None:
    known = {"Name chapters.": told(guess="medical"), "Name chapters.\nwarts": told("medical")}
    assert (await going(known, "warts", system="Name chapters.")).conclusion.adapter == "medical"
    other = {**known, "warts": told("code")}
    assert (await going(other, "warts", system="Name chapters.")).conclusion.adapter == "code"
    unlike = {**known, "Name chapters.\nwarts": told("code")}
    assert (await going(unlike, "warts", system="Name chapters.")).conclusion.adapter == ""


async def test_under_a_system_prompt_without_an_adapter_a_turn_is_read_by_itself() -> None:
    asked = Classifiers({"torts?": told("legal")})
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


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_quiet_conversation_is_over() -> None:
    clock = Clock()
    kept: RecentByTenant[str] = RecentByTenant(1800, now=clock)
    kept.put("t", "a", "legal")
    clock.now = 1800
    assert kept.get("t", "a") == "legal"
    clock.now = 1801
    assert kept.get("t", "a") is None
    assert len(kept) == 0


def test_tenants_do_not_see_each_others_conversations() -> None:
    kept: RecentByTenant[str] = RecentByTenant(1800)
    kept.put("one", "a", "legal")
    assert kept.get("two", "a") is None


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
