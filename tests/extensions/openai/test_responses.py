"""OpenAI's Responses API with its own client: answers, streams, shapes, refusals by name."""

from __future__ import annotations

import json
from typing import Any, get_args

import openai
import pytest
from openai.types.responses import ResponseIncludable, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from router.engine.fake import FakeEngine
from router.errors import InvalidRequest
from router.extensions.openai import requests, responses
from router.extensions.openai.fields import parsed
from router.extensions.openai.responses_answers import ResponseWriter
from router.v1 import inference_pb2 as pb
from tests.extensions.openai.validated import validated
from tests.server.http_helpers import Http, StartWeb

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PATH = "/v1/responses"


def message_of(**fields: Any) -> pb.GenerateRequest:
    _, chat = responses.parsed_response(json.dumps({"input": "hi", **fields}).encode())
    return requests.generate_message(chat, "")


def refusal(**fields: Any) -> dict[str, str]:
    """The refused fields, each with its text."""
    with pytest.raises(InvalidRequest) as caught:
        message_of(**fields)
    return {v.field: v.description for v in caught.value.violations}


async def events_of(client: Any, **fields: Any) -> list[dict[str, Any]]:
    """The events of a streamed response; each is named by its `event:` line, and counted."""
    answer = await client.post(PATH, json={"stream": True, "input": "one two three", **fields})
    assert answer.status_code == 200
    found = []
    for number, block in enumerate(answer.text.strip().split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_json(data.removeprefix("data: "), strict=True)
        if "response" in event:
            validated(event["response"])
        found.append(event)
    return found


# -- Requests


def test_a_conversation_is_that_of_a_chat() -> None:
    asked = message_of(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
            },
            {"role": "user", "content": "c"},
        ],
    )
    assert [(turn.role, turn.text) for turn in asked.input.chat.messages] == [
        (pb.ROLE_SYSTEM, "Be brief.\n\nBe kind."),
        (pb.ROLE_USER, "a"),
        (pb.ROLE_ASSISTANT, "b"),
        (pb.ROLE_USER, "c"),
    ]


def test_fields_are_those_of_a_chat() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = message_of(
        max_output_tokens=7,
        temperature=0,
        top_logprobs=3,
        metadata={"a": "b"},
        safety_identifier="u",
        routing={"domain": "law"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
    )
    assert (asked.sampling.max_tokens, asked.sampling.logprobs) == (7, 3)
    assert asked.sampling.HasField("temperature")
    assert json.loads(asked.sampling.json_schema) == schema
    assert (asked.routing.unit, asked.routing.domain, asked.labels["a"]) == ("u", "law", "b")


@pytest.mark.parametrize(
    ("fields", "field", "hint"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation in `input`"),
        ({"conversation": "conv_1"}, "conversation", "whole conversation in `input`"),
        ({"background": True}, "background", "stream it"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "no reasoning"),
        ({"max_tokens": 5}, "max_tokens", "did you mean 'max_output_tokens'?"),
        ({"prompt": {"id": "p"}}, "prompt", "no prompts are kept"),
        ({"truncation": "auto"}, "truncation", 'it may be "disabled"'),
        ({"reasoning": {"effort": "low"}}, "reasoning", 'it may be {} or {"effort": null} or'),
        ({"include": [responses.LOGPROBS, "reasoning.text"]}, "include[1]", responses.LOGPROBS),
        ({"include": [5]}, "include[0]", responses.LOGPROBS),
        ({"text": {"verbosity": "none"}}, "text.verbosity", "'low', 'medium' or 'high'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search is not supported"),
        ({"input": []}, "input", "at least 1"),
        ({"input": 5}, "input", "a text or a list"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "user"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "send the item itself"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type", "leave them out"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "images are not supported",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", ""),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "must be there"),
        ({"max_output_tokens": "x"}, "max_output_tokens", "integer"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(fields: dict[str, Any], field: str, hint: str) -> None:
    assert hint in refusal(**fields)[field]


def test_what_no_answer_here_has_may_be_asked_for() -> None:
    """LiteLLM's bridge and the Agents SDK ask for these by default."""
    assert set(get_args(ResponseIncludable)) <= set(responses.INCLUDABLE)
    asked = message_of(include=list(responses.INCLUDABLE[1:]), text={"verbosity": "low"})
    assert asked == message_of()


async def test_errors_name_fields_of_a_response(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web())
    for fields, param in [
        ({"input": "hi", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "one " * 3000}, "input"),
        ({"input": [{"role": "user", "content": ""}], "instructions": "x"}, "input[0].content"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input[0].role"),
        ({"input": ""}, "input"),
        ({"input": "hi", "model": "nobody"}, "model"),
        ({"input": "hi", "safety_identifier": "x" * 300}, "safety_identifier"),
        (
            {"input": "hi", "text": {"format": {"type": "json_schema", "schema": {"type": 5}}}},
            "text.format.schema",
        ),
    ]:
        answer = await client.post(PATH, json=fields)
        error = answer.json()["error"]
        assert (answer.status_code in (400, 404), error["param"]) == (True, param), error
        assert "messages" not in error["message"]


# -- Answers


async def test_a_response_is_what_openai_says_it_is(start_web: StartWeb, http: Http) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for fields in (
        {},
        {"text": {"format": {"type": "json_object"}}},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}},
        {"top_logprobs": 2, "instructions": "Be brief.", "user": "u", "metadata": {"a": "b"}},
    ):
        answer = await http(await start_web()).post(PATH, json={"input": "one two three", **fields})
        body = validated(answer.json())
        assert body["id"] == f"resp_{answer.headers['x-router-response-id']}"
        assert body["output"][0]["id"].startswith("msg_")
        assert body["store"] is False


async def test_the_client_reads_answer_and_usage(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model="medical", input="one two three", store=True)
    assert (answer.status, answer.model) == ("completed", "medical@1.0.0")
    assert answer.output_text.endswith("one two three")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    short = await client.responses.create(model="base", input="one two three", max_output_tokens=1)
    assert short.status == "incomplete"
    assert short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


class Place(BaseModel):
    """A schema of a caller."""

    name: str


async def test_the_client_parses_an_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.parse(model="base", input="one", text_format=Place)
    assert isinstance(answer.output_parsed, Place)


# -- Streams


async def test_a_stream_has_all_events_and_says_what_a_whole_answer_says(
    start_web: StartWeb, http: Http
) -> None:
    client = http(await start_web())
    whole = (await client.post(PATH, json={"input": "one two three", "top_logprobs": 1})).json()
    events = await events_of(client, top_logprobs=1)
    names = [event["type"].removeprefix("response.") for event in events]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    text = "".join(event["delta"] for event in events[4:-4])
    last = events[-1]["response"]
    assert text == whole["output"][0]["content"][0]["text"]
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert last["usage"] == whole["usage"]


async def test_the_clients_stream_accumulates(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="base", input="one two three") as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text
    assert final.output_text.endswith("one two three")


async def test_a_stream_that_is_cut_is_incomplete(start_web: StartWeb, http: Http) -> None:
    events = await events_of(http(await start_web()), max_output_tokens=1)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


async def test_an_error_within_a_stream_is_its_last_event(start_web: StartWeb, http: Http) -> None:
    server = await start_web(engine=FakeEngine(step_seconds=0.02), max_deadline_seconds=0.3)
    events = await events_of(http(server), max_output_tokens=400, input="one " * 400)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert "deadline" in events[-1]["response"]["error"]["message"]


async def test_an_error_before_a_stream_is_the_answer(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.responses.create(model="nobody", input="hi", stream=True)
    assert refused.value.code == "model_not_found"


async def test_no_response_is_kept(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model="base", input="hi")
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as refused:
            await call(answer.id)
        assert "no response is kept" in str(refused.value)


# -- Calls of functions

CALLS = (
    pb.ToolCall(id="call_1", name="look", arguments='{"a": 1}'),
    pb.ToolCall(id="call_2", name="look", arguments="{}"),
)


def writer_of(**fields: Any) -> ResponseWriter:
    return ResponseWriter(parsed(responses.ResponseBody, json.dumps({"input": "x", **fields}).encode()))


def test_calls_are_items_of_their_own() -> None:
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    answer = pb.GenerateResponse(
        response_id="0a1b", text="Well.", finish_reason=pb.FINISH_REASON_TOOL_CALLS, tool_calls=CALLS
    )
    written = writer_of(tools=tools, tool_choice="required").whole(answer)
    output = validated(json.loads(written))["output"]
    assert [item["type"] for item in output] == ["message", *["function_call"] * 2]
    assert len({item["id"] for item in output}) == 3


def test_calls_are_streamed_one_after_the_other() -> None:
    writer = writer_of()
    pieces = [
        pb.ToolCallDelta(index=0, id="call_1", name="look"),
        pb.ToolCallDelta(index=0, arguments='{"a"'),
        pb.ToolCallDelta(index=0, arguments=": 1}"),
        pb.ToolCallDelta(index=1, id="call_2", name="look", arguments="{}"),
    ]
    sent = [
        pb.StreamGenerateResponse(started=pb.Started(response_id="0a1b")),
        pb.StreamGenerateResponse(delta=pb.Delta(text="Well.", tool_calls=pieces[:2])),
        *(pb.StreamGenerateResponse(delta=pb.Delta(tool_calls=[piece])) for piece in pieces[2:]),
        pb.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_TOOL_CALLS, tool_calls=CALLS)),
    ]
    blocks = b"".join(map(writer.event, sent)).decode().strip().split("\n\n")
    events = [json.loads(block.split("\ndata: ")[1]) for block in blocks]
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    message = ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    deltas = ["function_call_arguments.delta"]
    call = ["output_item.added", *deltas, "function_call_arguments.done", "output_item.done"]
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", *message, "output_item.done"),
        *(call[0], *deltas, *call[1:], *call, "completed"),
    ]
    found = [item for item in events[-1]["response"]["output"] if item["type"] == "function_call"]
    assert [(item["call_id"], item["arguments"]) for item in found] == [
        ("call_1", '{"a": 1}'),
        ("call_2", "{}"),
    ]


CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}


def test_functions_calls_and_results_are_those_of_a_chat() -> None:
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "get_weather",
        "arguments": "{}",
    }
    asked = message_of(
        tools=[WEATHER],
        tool_choice={
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
        parallel_tool_calls=False,
        input=[
            {"role": "user", "content": "x"},
            call,
            call | {"call_id": "call_2"},
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            {
                "type": "function_call_output",
                "call_id": "call_2",
                "output": [{"type": "input_text", "text": "sun"}],
            },
        ],
    ).input.chat
    _, made, first, second = asked.messages
    assert [one.id for one in made.tool_calls] == ["call_1", "call_2"]
    assert [(one.role, one.tool_call_id, one.text) for one in (first, second)] == [
        (pb.ROLE_TOOL, "call_1", "rain"),
        (pb.ROLE_TOOL, "call_2", "sun"),
    ]
    assert (asked.tools.functions[0].name, asked.tools.choice) == ("get_weather", pb.TOOL_CHOICE_REQUIRED)
    assert asked.tools.single


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"tools": [WEATHER | {"name": "a b"}]}, "tools[0].name"),
        ({"tools": [WEATHER | {"parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
async def test_functions_are_refused_by_name(
    start_web: StartWeb, http: Http, sent: dict[str, Any], param: str
) -> None:
    answer = await http(await start_web()).post(PATH, json={"input": "hi"} | sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_a_call_that_is_required_is_made_and_answered(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model="base", input="one", tools=[WEATHER], tool_choice="required")
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    history: Any = [
        {"role": "user", "content": "one"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    answer = await client.responses.create(model="base", input=history, tools=[WEATHER], tool_choice="none")
    assert answer.output_text
    async with client.responses.stream(
        model="base", input="one", tools=[WEATHER], tool_choice="required"
    ) as stream:
        deltas = [e.delta async for e in stream if e.type == "response.function_call_arguments.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output[0].arguments  # type: ignore[union-attr]
