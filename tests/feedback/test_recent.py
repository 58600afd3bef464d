"""The latest answers: bounded, and no tenant's flood makes another's be forgotten."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.clients import Client
from router.feedback.recent import OVERHEAD, AnswersGiven, GivenAnswer, RecentAnswers
from router.ports import End
from router.types import (
    AdapterRef,
    Decision,
    FinishReason,
    Keeping,
    Reason,
    Request,
    RoutingHints,
    Turn,
    Usage,
)


def answered(text: str | None = None) -> GivenAnswer:
    return GivenAnswer("legal", "1.0.0", "d" * 64, "ann", answer=text)


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.text(max_size=300) | st.none()), max_size=60))
def test_it_never_holds_more_than_it_may(added: list[tuple[str, str | None]]) -> None:
    recent = RecentAnswers(most_answers=7, most_bytes=5000)
    kept: dict[tuple[str, str], GivenAnswer] = {}
    for number, (tenant, text) in enumerate(added):
        recent.add(str(number), tenant, kept.setdefault((str(number), tenant), answered(text)))
        there = {key: value for key, value in kept.items() if recent.get(*key) is not None}
        assert len(recent) == len(there) <= 7
        assert recent.size == sum(one.size for one in there.values()) <= 5000
        assert all(recent.get(*key) is value for key, value in there.items())
        assert (str(number), tenant) in there


def test_an_answer_is_its_tenants_alone() -> None:
    recent = RecentAnswers()
    recent.add("x", "acme", answered())
    assert recent.get("x", "acme") is not None
    assert recent.get("x", "bravo") is None
    assert recent.get("x", "") is None


def test_a_flood_pushes_out_its_own() -> None:
    recent = RecentAnswers(most_answers=100)
    for number in range(10):
        recent.add(f"quiet{number}", "quiet", answered("short"))
    for number in range(1000):
        recent.add(f"loud{number}", "loud", answered("x" * 100))
    assert all(recent.get(f"quiet{number}", "quiet") for number in range(10))
    assert len(recent) == 100
    assert recent.get("loud0", "loud") is None
    assert recent.get("loud999", "loud") is not None


def test_a_text_larger_than_all_is_let_go_at_once() -> None:
    recent = RecentAnswers(most_bytes=2000)
    recent.add("a", "", answered())
    recent.add("b", "", answered("x" * 4000))
    assert (len(recent), recent.size) == (0, 0)


def test_the_size_is_about_what_it_takes() -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    recent = RecentAnswers(most_answers=5000)
    for number in range(5000):
        recent.add(f"{number:040x}", "acme", GivenAnswer("legal", "1.0.0", "d" * 64, f"unit {number}"))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert recent.size == 5000 * OVERHEAD
    assert 0.3 * recent.size < taken < recent.size


def test_a_second_entry_of_an_answer_takes_the_place_of_the_first() -> None:
    recent: RecentAnswers[GivenAnswer] = RecentAnswers()
    recent.add("a", "", answered("x" * 100))
    recent.add("a", "", answered("y"))
    assert (len(recent), recent.size) == (1, answered("y").size)
    recent.add("b", "acme", answered())
    recent.forget(lambda tenant, one: tenant == "")
    assert (len(recent), recent.size, recent.get("a", "")) == (1, OVERHEAD, None)


DECISION = Decision(AdapterRef("medical", "1.2.0"), Reason.EXPLICIT, digest="d" * 64)


@pytest.mark.parametrize(
    ("server", "client", "kept"),
    [
        ("texts", "texts", "texts"),
        ("texts", "labels", "labels"),
        ("labels", "texts", "labels"),
        ("off", "texts", "off"),
        ("texts", "off", "off"),
    ],
)
def test_texts_are_remembered_where_server_and_client_agree(
    server: Keeping, client: Keeping, kept: Keeping
) -> None:
    given = AnswersGiven(server)
    request = Request(
        "r", (Turn("system", "Be brief."), Turn("user", "What?")), routing=RoutingHints(unit="ann")
    )
    completion = given.begun(request, DECISION, Client("c", feedback=client))
    assert (completion is not None) == (kept == "texts")
    if completion is not None:
        completion.ended(End(FinishReason.STOP, "This.", Usage()))
    found = given.recent.get("r", "")
    assert (found is None) == (kept == "off")
    if found is not None:
        assert (found.adapter, found.version, found.digest, found.unit) == (
            "medical",
            "1.2.0",
            "d" * 64,
            "ann",
        )
        texts = ((("system", "Be brief."), ("user", "What?")), "This.")
        assert (found.messages, found.answer) == (texts if kept == "texts" else ((), None))


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, None])
def test_an_answer_that_was_cut_off_is_not_kept(reason: FinishReason | None) -> None:
    given = AnswersGiven("texts")
    completion = given.begun(Request("r", raw_prompt="Once"), DECISION, Client("c", feedback="texts"))
    assert completion is not None
    completion.ended(End(reason, "upon", Usage()))
    found = given.recent.get("r", "")
    assert found is not None
    assert (found.messages, found.answer) == ((("raw", "Once"),), None)
