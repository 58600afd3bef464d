"""What routing reads of a request: turns, system prompt, instructions, and what is left out."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.routing.conversations import (
    ANSWER,
    SYSTEM_HEAD,
    SYSTEM_TAIL,
    TURNS,
    RoutingInput,
    UserTurn,
    routing_input,
)
from router.types import Request, Role, Turn

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
        assert isinstance(turn.instruction + turn.with_answer + reading.under_system(turn), str)


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


@given(st.text(alphabet="aA .?!:\n,'\")please write", max_size=3000))
def test_every_reading_is_a_part_of_the_text(text: str) -> None:
    turn = UserTurn(text)
    assert turn.without_form == "" or text.startswith(turn.without_form)
    assert turn.without_opening == "" or text.endswith(turn.without_opening)
    assert len(turn.instruction) <= 300


@pytest.mark.parametrize("unit", ["a", " ", ". ", "? ", "please ", "- ", "\n", "what is it? ", "(\"' "])
def test_a_megabyte_is_read_in_bounded_time(unit: str) -> None:
    turn = UserTurn(unit * (1_000_000 // len(unit)))
    started = time.process_time()
    _ = (turn.instruction, turn.without_form, turn.without_opening, turn.stands_alone)
    assert time.process_time() - started < 2
