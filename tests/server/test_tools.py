"""Calls of functions in the text of an answer, however it arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.server.tools import AnswerWithCalls, CallPiece
from router.types import FinishReason, Tool, Tools

OFFERED = (Tool("get_weather"), Tool("add"))
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PARIS = ("get_weather", '{"city": "Paris"}')


def read(tools: Tools, text: str, size: int = 1, reason: FinishReason = FinishReason.STOP) -> Any:
    """Text, calls and the reason of an answer that arrives in pieces of so many letters."""
    answer = AnswerWithCalls(tools)
    pieces = [piece for at in range(0, len(text), size) for piece in answer.push(text[at : at + size])]
    pieces += answer.end(reason)
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    assert all(call.id.startswith("call_") for call in answer.calls)
    return said, [(call.name, call.arguments) for call in answer.calls], answer.reason


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("It is warm.", "It is warm.", []),
        (CALL, "", [PARIS]),
        (f" \n{CALL}\n", "", [PARIS]),
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
        ('{"type": "function", "name": "add", "parameters": {}}', "", [("add", "{}")]),
        (f"[{CALL}, {CALL}]", "", [PARIS, PARIS]),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [PARIS]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [PARIS, PARIS]),
        (f"I look.\n<tool_call>{CALL}</tool_call>", "I look.\n", [PARIS]),
        (f"<tool_call>{CALL}", "", [PARIS]),  # some models end there
        (f"{CALL} is a call", f"{CALL} is a call", []),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ('{"name": "add", "arguments": "no object"}', '{"name": "add", "arguments": "no object"}', []),
        ('{"name": "add", "arguments": {}, "more": 1}', '{"name": "add", "arguments": {}, "more": 1}', []),
        ("<tool_call>no JSON</tool_call>!", "<tool_call>no JSON</tool_call>!", []),
        ("a < b <tool> c", "a < b <tool> c", []),
        ('{"answer": 5}', '{"answer": 5}', []),
    ],
)
def test_a_whole_call_of_an_offered_function_is_a_call_and_all_else_stays_text(
    text: str, said: str, calls: list[tuple[str, str]], size: int
) -> None:
    reason = FinishReason.TOOL_CALLS if calls else FinishReason.STOP
    assert read(Tools(OFFERED), text, size) == (said, calls, reason)


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", CALL, "{", " ", "[", "x", "<"]), max_size=6))
def test_no_text_is_lost_where_there_is_no_call(parts: list[str]) -> None:
    said, calls, _ = read(Tools(OFFERED), "".join(parts))
    if not calls:
        assert said == "".join(parts)


def test_text_is_held_back_only_while_it_may_become_a_call() -> None:
    answer = AnswerWithCalls(Tools(OFFERED))
    assert answer.push("It") == ("It",)
    assert answer.push(" is <") == (" is ",)
    assert answer.push("b>") == ("<b>",)
    other = AnswerWithCalls(Tools(OFFERED))
    assert other.push('{"na') == ()
    assert other.push('me": "x') == ('{"name": "x',)


def test_an_answer_that_was_cut_is_no_call() -> None:
    cut = CALL[:-1]
    assert read(Tools(OFFERED), cut, 1, FinishReason.LENGTH) == (cut, [], FinishReason.LENGTH)


def test_one_call_at_most_where_the_request_says_so() -> None:
    twice = f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    assert read(Tools(OFFERED, single=True), twice)[1] == [PARIS]
    assert read(Tools(OFFERED, "none"), CALL) == (CALL, [], FinishReason.STOP)
    assert read(Tools(), CALL) == (CALL, [], FinishReason.STOP)


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_a_required_call_is_the_whole_answer(size: int) -> None:
    only = Tools(OFFERED, "required", "add")
    assert read(only, '{"a":{"b":1}}', size) == ("", [("add", '{"a":{"b":1}}')], FinishReason.TOOL_CALLS)
    any_of = Tools(OFFERED, "required")
    text = '{"name":"add","arguments":{"a":{"b":1}}}'
    assert read(any_of, text, size) == ("", [("add", '{"a":{"b":1}}')], FinishReason.TOOL_CALLS)
    spaced = '{ "name": "add", "arguments": {"a": {}}\n}'
    assert read(any_of, spaced, size) == ("", [("add", '{"a": {}}')], FinishReason.TOOL_CALLS)


def test_arguments_that_were_cut_come_as_they_are() -> None:
    any_of = Tools(OFFERED, "required")
    cut = '{"name":"add","arguments":{"a":{"b":1}'
    assert read(any_of, cut, 1, FinishReason.LENGTH) == ("", [("add", '{"a":{"b":1}')], FinishReason.LENGTH)
    assert read(any_of, '{"name":"a', 1, FinishReason.LENGTH) == ("", [], FinishReason.LENGTH)


def test_arguments_stream_as_they_come() -> None:
    answer = AnswerWithCalls(Tools(OFFERED, "required", "add"))
    first, second = answer.push('{"a":')
    assert isinstance(first, CallPiece)
    assert (first.name, first.index) == ("add", 0)
    assert second == CallPiece(0, '{"a":')
    assert answer.push("1}") == (CallPiece(0, "1}"),)
    assert json.loads(answer.calls[0].arguments) == {"a": 1}
