"""Functions over OpenAI's API: offered, called, streamed, answered, refused by name."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from router.errors import InvalidRequest
from router.extensions.openai import fields, requests
from router.v1 import inference_pb2 as pb
from tests.server.http_helpers import StartWeb, asking, connect

USER: Any = [{"role": "user", "content": "one two three"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


def tool(name: str, parameters: Any = CITY, **more: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


WEATHER, ADD = tool("get_weather", description="The weather", strict=True), tool("add", None)
MADE = {"type": "function", "id": "call_1", "function": {"name": "add", "arguments": '{"a": 1}'}}
NO_OBJECT = {"type": "function", "id": "call_1", "function": {"name": "add", "arguments": "1"}}


def message(**more: Any) -> pb.GenerateRequest:
    asked = fields.parsed(requests.ChatCompletion, json.dumps(asking(**more)).encode())
    return requests.generate_message(asked, "")


def test_functions_and_the_choice_among_them() -> None:
    tools = message(tools=[WEATHER, ADD]).input.chat.tools
    assert [(one.name, one.description) for one in tools.functions] == [
        ("get_weather", "The weather"),
        ("add", ""),
    ]
    assert (json.loads(tools.functions[0].parameters), tools.functions[1].parameters) == (CITY, "")
    assert (tools.choice, tools.single) == (pb.TOOL_CHOICE_AUTO, False)
    assert message(tools=[ADD], tool_choice="none").input.chat.tools.choice == pb.TOOL_CHOICE_NONE
    assert message(tools=[ADD], parallel_tool_calls=False).input.chat.tools.single
    forced = message(tools=[WEATHER, ADD], tool_choice=named("add")).input.chat.tools
    assert (forced.choice, forced.function) == (pb.TOOL_CHOICE_REQUIRED, "add")
    some = {"mode": "required", "tools": [named("add")]}
    allowed = message(tools=[WEATHER, ADD], tool_choice={"type": "allowed_tools", "allowed_tools": some})
    assert allowed.input.chat.tools.choice == pb.TOOL_CHOICE_REQUIRED
    assert [one.name for one in allowed.input.chat.tools.functions] == ["add"]
    assert not message(tools=[], tool_choice="none").input.chat.HasField("tools")


def test_calls_and_results_are_turns() -> None:
    said = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [MADE]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "1"}]},
        {"role": "assistant", "function_call": {"name": "add", "arguments": "{}"}},
        {"role": "function", "name": "add", "content": "2"},
    ]
    _, call, result, old_call, old_result = message(messages=said).input.chat.messages
    assert (call.role, call.text) == (pb.ROLE_ASSISTANT, "")
    assert list(call.tool_calls) == [pb.ToolCall(id="call_1", name="add", arguments='{"a": 1}')]
    assert (result.role, result.text, result.tool_call_id) == (pb.ROLE_TOOL, "1", "call_1")
    assert old_call.tool_calls[0].name == "add"
    assert (old_result.role, old_result.function) == (pb.ROLE_TOOL, "add")


def test_a_required_call_replaces_the_format_of_the_answer() -> None:
    form = {"type": "json_object"}
    assert message(response_format=form, tools=[ADD]).sampling.json_schema
    assert not message(response_format=form, tools=[ADD], tool_choice="required").sampling.json_schema


@pytest.mark.parametrize(
    ("sent", "bad"),
    [
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a", description="x" * 9000)]}, "tools[0].function.description"),
        ({"tools": [ADD, tool("a", "no schema")]}, "tools[1].function.parameters"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [ADD] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": named("other")}, "tool_choice.function.name"),
        ({"functions": [{"name": "add"}]}, "functions"),
        ({"function_call": {"name": "add"}}, "function_call"),
        (
            {"messages": [*USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
            "messages[1].tool_calls[0]",
        ),
    ],
)
def test_what_is_wrong_is_named_before_it_is_sent(sent: Any, bad: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        message(**sent)
    assert any(one.field.startswith(bad) for one in refused.value.violations)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"tools": [ADD, tool("a", {"type": "string"})]}, "tools[1].function.parameters"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        ({"tools": [WEATHER], "tool_choice": "required", "extra_body": {"regex": "a"}}, "regex"),
        (
            {"tools": [ADD, tool("a", {"not": {}})], "tool_choice": "required"},
            "tools[1].function.parameters",
        ),
        ({"tools": [tool("a", {"not": {}})], "tool_choice": "required"}, "tools[0].function.parameters"),
        (
            {"messages": [*USER, {"role": "assistant", "tool_calls": [NO_OBJECT]}, *USER]},
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_what_is_wrong_inside_is_named(client: openai.AsyncOpenAI, sent: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**{"model": "base", "messages": USER} | sent)
    assert refused.value.param == param
    assert param in refused.value.message


async def test_a_required_call_is_valid_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "base", "messages": USER, "tools": [WEATHER, ADD]}
    for choice, names in (("required", ("get_weather", "add")), (named("get_weather"), ("get_weather",))):
        whole = await client.chat.completions.create(**asked, tool_choice=choice)
        assert whole.choices[0].finish_reason == "tool_calls"
        assert whole.choices[0].message.content is None
        (call,) = whole.choices[0].message.tool_calls or ()
        assert call.type == "function"
        assert call.function.name in names
        arguments = json.loads(call.function.arguments)
        assert arguments == ({} if call.function.name == "add" else {"city": arguments["city"]})
        async with client.chat.completions.stream(**asked, tool_choice=choice) as stream:
            final = (await stream.get_final_completion()).choices[0]
        assert final.finish_reason == "tool_calls"
        (streamed,) = final.message.tool_calls or ()
        assert (streamed.function.name, streamed.function.arguments) == (
            call.function.name,
            call.function.arguments,
        )


async def test_chunks_of_a_call_have_its_name_first_and_then_its_arguments(
    client: openai.AsyncOpenAI,
) -> None:
    stream = await client.chat.completions.create(
        model="base", messages=USER, tools=[WEATHER], tool_choice=named("get_weather"), stream=True
    )
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert (deltas[0].role, deltas[0].content) == ("assistant", None)
    pieces = [piece for delta in deltas for piece in (delta.tool_calls or ())[:1]]  # as some clients read
    first, *rest = pieces
    assert first.function is not None
    assert (first.index, first.type, first.function.name) == (0, "function", "get_weather")
    assert first.id
    assert {(piece.index, piece.id, piece.type) for piece in rest} == {(0, None, None)}
    text = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert json.loads(text)["city"] in ("Paris", "Rome")


async def test_an_answer_that_is_a_call_is_one_under_auto_alone(client: openai.AsyncOpenAI) -> None:
    text = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
    asked: Any = {"model": "base", "messages": USER, "tools": [WEATHER], "extra_body": {"choice": [text]}}
    called = (await client.chat.completions.create(**asked)).choices[0]
    assert called.finish_reason == "tool_calls"
    assert [one.function.name for one in called.message.tool_calls or ()] == ["get_weather"]
    plain = (await client.chat.completions.create(**asked, tool_choice="none")).choices[0]
    assert (plain.finish_reason, plain.message.content, plain.message.tool_calls) == ("stop", text, None)


async def test_tools_change_neither_the_answer_in_text_nor_the_routing(
    start_web: StartWeb, fakes: SimpleNamespace
) -> None:
    server = await start_web(**vars(fakes))
    history: Any = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [MADE]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a legal text"},
    ]
    async with connect(server) as client:
        plain = await client.chat.completions.create(model="auto", messages=USER)
        for more in ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}):
            answer = await client.chat.completions.create(model="auto", messages=USER, **more)
            assert answer.choices[0].message == plain.choices[0].message
        stream = await client.chat.completions.create(
            model="auto", messages=USER, tools=[WEATHER], stream=True
        )
        streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(streamed) == plain.choices[0].message.content
        assert len(streamed) > 3
        after = await client.chat.completions.create(model="auto", messages=history, tools=[WEATHER])
        assert "a legal text" in (after.choices[0].message.content or "")
    assert {request.text for request in fakes.router.requests} == {"one two three"}
