"""Nothing in a request is without bound: every list, map and text at its cap, and one beyond."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from router.errors import InvalidRequest
from router.names import parse_adapter
from router.server.adapters import MAX_FILTER_BYTES, MAX_REASON_BYTES, MAX_TOKEN_BYTES
from router.server.requests import (
    MAX_HINT_BYTES,
    MAX_LABEL_BYTES,
    MAX_UNIT_BYTES,
    RequestLimits,
    generate_request,
)
from router.types import (
    MAX_BIASES,
    MAX_CALL_ID,
    MAX_CHOICE_BYTES,
    MAX_CHOICES,
    MAX_CONSTRAINT_BYTES,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_MIXTURE_PARTS,
    MAX_STOP_BYTES,
    MAX_STOPS,
    MAX_TOOL_CALLS,
    MAX_TOOL_DESCRIPTION,
    MAX_TOOL_NAME,
    MAX_TOOLS,
)
from router.v1 import adapters_pb2, experiments_pb2
from router.v1 import inference_pb2 as pb
from tests.fuzz import rpcs
from tests.security.requests import every_field, request_types
from tests.server.helpers import ask, details, failure

PROMPT = 100_000
LIMITS = RequestLimits(PROMPT, 4096)
Made = Callable[[int], pb.GenerateRequest]


def chat(count: int, text: str) -> pb.GenerateRequest:
    said = [pb.ChatMessage(role=pb.ROLE_USER, text=text) for _ in range(count)]
    return pb.GenerateRequest(input=pb.Input(chat=pb.Chat(messages=said)))


def called(count: int = 1, **fields: str) -> pb.GenerateRequest:
    """An assistant's turn with calls of functions, and one of the user."""
    calls = [pb.ToolCall(**{"id": "a", "name": "a", "arguments": "{}", **fields}) for _ in range(count)]
    turns = [
        pb.ChatMessage(role=pb.ROLE_ASSISTANT, tool_calls=calls),
        pb.ChatMessage(role=pb.ROLE_USER, text="x"),
    ]
    return pb.GenerateRequest(input=pb.Input(chat=pb.Chat(messages=turns)))


def result(**fields: str) -> pb.GenerateRequest:
    """A turn with the result of a call."""
    turn = pb.ChatMessage(role=pb.ROLE_TOOL, text="x", **fields)
    return pb.GenerateRequest(input=pb.Input(chat=pb.Chat(messages=[turn])))


def offering(*functions: pb.Tool, **fields: Any) -> pb.GenerateRequest:
    """A chat with functions."""
    request = chat(1, "x")
    request.input.chat.tools.CopyFrom(pb.Tools(functions=functions, **fields))
    return request


def offering_one(name: str) -> pb.GenerateRequest:
    """A chat with the function that has to be called."""
    return offering(pb.Tool(name=name), function=name, choice=pb.TOOL_CHOICE_REQUIRED)


def schema(size: int) -> str:
    """A schema of so many bytes."""
    return '{"title": "%s"}' % ("x" * (size - 13))


def sampled(**fields: Any) -> pb.GenerateRequest:
    return ask(sampling=fields)


def distinct(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def mixture(*names: str) -> pb.GenerateRequest:
    return ask(routing={"mixture": [{"adapter": f"adapters/{name}", "weight": 0.1} for name in names]})


# By the field's path: the cap, and a request with so many bytes or entries of it.
CAPS: dict[str, tuple[int, Made]] = {
    "input.text": (PROMPT, lambda n: ask("x" * n)),
    "input.raw_prompt": (PROMPT, lambda n: pb.GenerateRequest(input=pb.Input(raw_prompt="x" * n))),
    "input.chat.messages": (MAX_MESSAGES, lambda n: chat(n, "x")),
    "input.chat.messages.text": (PROMPT // 2, lambda n: chat(2, "x" * n)),
    "input.chat.messages.tool_calls": (MAX_TOOL_CALLS, called),
    "input.chat.messages.tool_calls.id": (MAX_CALL_ID, lambda n: called(id="x" * n)),
    "input.chat.messages.tool_calls.name": (MAX_TOOL_NAME, lambda n: called(name="x" * n)),
    "input.chat.messages.tool_calls.arguments": (PROMPT - 1, lambda n: called(arguments=schema(n))),
    "input.chat.messages.tool_call_id": (MAX_CALL_ID, lambda n: result(tool_call_id="x" * n)),
    "input.chat.messages.function": (MAX_TOOL_NAME, lambda n: result(function="x" * n)),
    "input.chat.tools.functions": (
        MAX_TOOLS,
        lambda n: offering(*(pb.Tool(name=name) for name in distinct(n))),
    ),
    "input.chat.tools.functions.name": (MAX_TOOL_NAME, lambda n: offering(pb.Tool(name="x" * n))),
    "input.chat.tools.functions.description": (
        MAX_TOOL_DESCRIPTION,
        lambda n: offering(pb.Tool(name="a", description="x" * n)),
    ),
    "input.chat.tools.functions.parameters": (
        MAX_CONSTRAINT_BYTES,
        lambda n: offering(pb.Tool(name="a", parameters=schema(n))),
    ),
    "input.chat.tools.function": (MAX_TOOL_NAME, lambda n: offering_one("x" * n)),
    "sampling.stop": (MAX_STOPS, lambda n: sampled(stop=distinct(n))),
    "sampling.stop.": (MAX_STOP_BYTES, lambda n: sampled(stop=["x" * n])),
    "sampling.json_schema": (MAX_CONSTRAINT_BYTES, lambda n: sampled(json_schema="x" * n)),
    "sampling.regex": (MAX_CONSTRAINT_BYTES, lambda n: sampled(regex="x" * n)),
    "sampling.grammar": (MAX_CONSTRAINT_BYTES, lambda n: sampled(grammar="x" * n)),
    "sampling.quote": (MAX_CONSTRAINT_BYTES, lambda n: sampled(quote="x" * n)),
    "sampling.from_prompt": (64, lambda n: sampled(from_prompt="x" * n)),
    "sampling.choices.values": (MAX_CHOICES, lambda n: sampled(choices={"values": distinct(n)})),
    "sampling.choices.values.": (MAX_CHOICE_BYTES, lambda n: sampled(choices={"values": ["x" * n]})),
    "sampling.logit_bias": (MAX_BIASES, lambda n: sampled(logit_bias=dict.fromkeys(range(n), 1.0))),
    "routing.adapter": (63, lambda n: ask(routing={"adapter": "adapters/" + "x" * n})),
    "routing.mixture": (MAX_MIXTURE_PARTS, lambda n: mixture(*distinct(n))),
    "routing.mixture.adapter": (63, lambda n: mixture("x" * n)),
    "routing.domain": (MAX_HINT_BYTES, lambda n: ask(routing={"domain": "x" * n})),
    "routing.task": (MAX_HINT_BYTES, lambda n: ask(routing={"task": "x" * n})),
    "routing.unit": (MAX_UNIT_BYTES, lambda n: ask(routing={"unit": "x" * n})),
    "routing.conversation": (MAX_UNIT_BYTES, lambda n: ask(routing={"conversation": "x" * n})),
    "labels": (MAX_LABELS, lambda n: ask(labels=dict.fromkeys(distinct(n), "x"))),
    "labels.key": (MAX_LABEL_BYTES, lambda n: ask(labels={"x" * n: "x"})),
    "labels.value": (MAX_LABEL_BYTES, lambda n: ask(labels={"x": "x" * n})),
}


def test_every_list_map_and_text_of_a_request_for_an_answer_is_here() -> None:
    """A new field has to be given a cap, and a row above."""
    prefix = "GenerateRequest."
    unbounded = {
        path.removeprefix(prefix)
        for path, field in every_field().items()
        if path.startswith(prefix) and (field.is_repeated or field.cpp_type == FieldDescriptor.CPPTYPE_STRING)
    }
    assert {path for path in CAPS if not path.endswith(".") and " " not in path} == unbounded


def test_the_other_requests_of_the_service_say_nothing_more() -> None:
    of = {
        name: {path.partition(".")[2] for path in every_field() if path.startswith(f"{name}.")}
        for name in ("GenerateRequest", "StreamGenerateRequest", "RouteRequest", "CountTokensRequest")
    }
    assert of["StreamGenerateRequest"] == of["GenerateRequest"]
    assert of["RouteRequest"] | of["CountTokensRequest"] < of["GenerateRequest"]


@pytest.mark.parametrize("path", CAPS)
def test_the_cap_is_taken_and_one_more_is_refused_by_the_fields_name(path: str) -> None:
    cap, made = CAPS[path]
    request = generate_request(made(cap), "id", LIMITS)
    assert request.turns or request.raw_prompt
    with pytest.raises(InvalidRequest) as refused:
        generate_request(made(cap + 1), "id", LIMITS)
    (field,) = {violation.field for violation in refused.value.violations}
    assert field.startswith(path.split(".")[0])
    assert field.partition("[")[0] in path or path in field


def test_names_of_adapters_have_a_cap() -> None:
    assert parse_adapter("adapters/" + "x" * 63)
    for name in ("adapters/" + "x" * 64, "adapters/x/versions/" + "1" * 64):
        with pytest.raises(InvalidRequest):
            parse_adapter(name)


async def test_texts_about_adapters_have_caps(stubs: Any) -> None:
    version = "adapters/medical/versions/1.0.0"

    def listed(**said: str) -> Any:
        return stubs.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(**said))

    def chosen(reason: str) -> Any:
        request = adapters_pb2.SetDefaultVersionRequest(name=version, force=True, reason=reason)
        return stubs.adapters.SetDefaultVersion(request)

    assert await listed(domain="x" * MAX_FILTER_BYTES, task="x" * MAX_FILTER_BYTES) is not None
    assert (await chosen("x" * MAX_REASON_BYTES)).adapter.name == version
    for call in (
        listed(domain="x" * (MAX_FILTER_BYTES + 1)),
        listed(task="x" * (MAX_FILTER_BYTES + 1)),
        listed(page_token="x" * (MAX_TOKEN_BYTES + 1)),
        chosen("x" * (MAX_REASON_BYTES + 1)),
    ):
        assert details(await failure(call))["BadRequest"].field_violations


# -- Experiments: of every list and map, as many empty entries as a message may have.


def stuffed() -> Iterator[tuple[str, bytes]]:
    """A method and a message of 1 MiB for each list of its request."""
    for method, message in request_types().items():
        if "ExperimentService" not in method:
            continue
        for path, field in every_field().items():
            name, _, place = path.partition(".")
            if name == message.name and field.is_repeated and "." not in place.removeprefix("experiment."):
                number = (
                    bytes([field.number << 3 | 2]) if field.number < 16 else varint(field.number << 3 | 2)
                )
                entries = (number + b"\0") * ((1 << 20) // (len(number) + 1) - 64)
                inside = message.fields_by_name.get("experiment")
                if inside is not None and place.startswith("experiment."):
                    entries = varint(inside.number << 3 | 2) + varint(len(entries)) + entries
                yield method, entries


def varint(value: int) -> bytes:
    """As protobuf has it."""
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


@pytest.mark.slow
async def test_lists_of_a_mebibyte_of_nothing_are_refused_soon(tmp_path: Path, connect: Any) -> None:
    sent = list(stuffed())
    assert len(sent) > 8
    assert experiments_pb2.CreateExperimentRequest.FromString(sent[0][1]).ByteSize() > 1 << 19
    async with rpcs.serving(tmp_path) as app:
        stubs = connect(app, ("grpc.max_receive_message_length", -1))
        for method, body in sent:
            start = time.monotonic()
            error = await failure(stubs.channel.stream_stream(method)(iter([body]), timeout=60))
            assert error.code().name in ("INVALID_ARGUMENT", "NOT_FOUND"), (method, error)
            assert len(error.details()) < 2048
            assert time.monotonic() - start < 30
