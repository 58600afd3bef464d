"""Bodies are read after every check: how large, how many at once, how long they may take to come."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import example, given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.extensions.kserve.service import ROWS as KSERVE
from router.server import bodies
from router.server.app import ServerApp
from router.server.bodies import (
    ELEMENT_BYTES,
    MAX_ELEMENTS,
    Decoder,
    count_json,
    count_message,
    decoder_of,
    json_decoder,
)
from router.server.grpc_adapter import GrpcServer
from router.server.policy import SMALL
from router.types import MAX_OUTCOMES
from router.v1 import experiments_pb2
from router.v1 import inference_pb2 as pb
from tests.fuzz import rpcs
from tests.fuzz.inputs import bytes_changed, message_changed
from tests.security.requests import request_types
from tests.security.test_bodies import field, varint
from tests.server.helpers import Connect, Start, ask, details, failure, until

GENERATE = "/router.v1.InferenceService/Generate"
STREAM = "/router.v1.InferenceService/StreamGenerate"
LIST = "/router.v1.AdapterService/ListAdapters"


def half_open(stubs: SimpleNamespace, method: str = GENERATE, timeout: float | None = None) -> Any:
    """A call that sends headers and no body."""
    return stubs.channel.stream_stream(method)(timeout=timeout)


def read_bodies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the bodies that were decoded; grows."""
    seen: list[int] = []

    def noted(decode: Any, data: bytes) -> Any:
        seen.append(len(data))
        return decoder_of(decode)(data)

    monkeypatch.setattr(bodies, "decoder_of", lambda decode: partial(noted, decode))
    return seen


async def test_a_refused_call_is_never_read(
    start_server: Start, connect: Connect, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.engine.hold()
    server = await start_server(**vars(fakes), max_running=1, max_queue=0)
    stubs = connect(server)
    running = asyncio.ensure_future(stubs.inference.Generate(ask()))
    await until(lambda: fakes.engine.busy, 20)
    seen = read_bodies(monkeypatch)
    refused = await failure(stubs.inference.Generate(ask("x" * (1 << 20))))
    assert details(refused)["ErrorInfo"].reason == "QUEUE_FULL"
    assert seen == []
    fakes.engine.resume()
    await running


@pytest.mark.parametrize("method", [GENERATE, STREAM, LIST])
async def test_a_half_open_call_ends_at_its_deadline(
    server: ServerApp, stubs: SimpleNamespace, method: str
) -> None:
    error = await failure(half_open(stubs, method, timeout=0.2))
    assert error.code().name == "DEADLINE_EXCEEDED"
    await until(lambda: server.admission.in_flight == 0)


async def test_half_open_calls_end_at_the_servers_limit(
    start_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 0.3)
    server = await start_server()
    stubs = connect(server)
    assert (await stubs.inference.Generate(ask())).text  # it knows then how many calls a connection takes
    calls = [half_open(stubs) for _ in range(90)]
    ends = await asyncio.gather(*map(failure, calls))
    told = Counter(end.details() for end in ends)
    assert told["the body of the request did not come within 0.3 s"] >= 6, told  # those of one connection
    assert {end.code().name for end in ends} == {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert server.admission.in_flight == 0
    assert (await stubs.inference.Generate(ask())).text


async def test_no_message_at_all_is_the_callers_fault(stubs: SimpleNamespace) -> None:
    call = half_open(stubs)
    await call.done_writing()
    error = await failure(call)
    assert (error.code().name, details(error)["ErrorInfo"].reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_a_body_over_the_methods_cap(start_server: Start, connect: Connect) -> None:
    stubs = connect(await start_server(max_body_bytes=1 << 21))
    error = await failure(stubs.channel.unary_unary(LIST)(b"x" * ((64 << 10) + 1)))
    info = details(error)["ErrorInfo"]
    assert (error.code().name, info.reason) == ("RESOURCE_EXHAUSTED", "BODY_TOO_LARGE")
    assert (info.metadata["limit"], info.metadata["got"]) == ("65536", "65537")
    error = await failure(stubs.channel.unary_unary(GENERATE)(b"x" * ((1 << 21) + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stubs.inference.Generate(ask())).text


async def test_large_bodies_are_decoded_in_one_thread(
    stubs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    most: list[int] = []

    def slowly(decode: Any, data: bytes) -> Any:
        if len(data) > SMALL:
            assert threading.current_thread() is not threading.main_thread()
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
        return decoder_of(decode)(data)

    monkeypatch.setattr(bodies, "decoder_of", lambda decode: partial(slowly, decode))
    text = " ".join(["word"] * 20_000)
    errors = await asyncio.gather(*(failure(stubs.inference.Generate(ask(text))) for _ in range(4)))
    assert {details(error)["ErrorInfo"].reason for error in errors} == {"PROMPT_TOO_LONG"}
    assert most == [1, 1, 1, 1]


async def test_a_budget_that_is_used_up(
    start_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that brings no body holds its connection's only slot: others wait, health does not."""
    monkeypatch.setattr("router.server.app.BODY_MEMORY", 4 << 20)
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 1.5)
    server = await start_server(max_body_bytes=2 << 20)
    stubs = connect(server)
    held = half_open(stubs, timeout=5)
    await until(lambda: server.admission.in_flight == 1)
    health = health_pb2_grpc.HealthStub(stubs.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=1)).status == 1
    await asyncio.sleep(0.5)  # else both may end at the same moment
    assert (await stubs.inference.Generate(ask(), timeout=5)).text  # after that has ended
    await failure(held)


async def test_who_waits_too_long_for_the_budget_is_refused(
    start_server: Start, connect: Connect, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.engine.hold()
    monkeypatch.setattr("router.server.app.BODY_MEMORY", 1 << 20)
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 0.1)
    server = await start_server(**vars(fakes), max_body_bytes=1 << 20)
    stubs = connect(server)
    held = asyncio.ensure_future(stubs.inference.Generate(ask("w " * 1000)))
    await until(lambda: fakes.engine.status().busy)
    error = await failure(stubs.inference.Generate(ask(), timeout=5))
    assert details(error)["ErrorInfo"].reason == "QUEUE_FULL"
    fakes.engine.resume()
    assert (await held).text
    assert (await stubs.inference.Generate(ask(), timeout=5)).text


# -- Bodies are counted before they are decoded: none becomes more than MAX_ELEMENTS elements.


SIZE = (2 << 20) - 64
SECONDS = 0.25  # of processor time; the defects took 1 s and more
KINDS = tuple({kind.DESCRIPTOR.full_name: kind for kind in rpcs.KINDS.values()}.values())


def lists(message: Descriptor, around: tuple[FieldDescriptor, ...] = ()) -> Iterator[bytes]:
    """A body of SIZE bytes for every repeated field and map below a message: of its smallest entries, and
    where they are numbers, of packed ones."""
    for one in message.fields:
        if one.is_repeated:
            wire = {FieldDescriptor.CPPTYPE_DOUBLE: 1, FieldDescriptor.CPPTYPE_FLOAT: 5}.get(one.cpp_type, 0)
            text = one.cpp_type in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE)
            entry = varint(one.number << 3 | (2 if text else wire)) + bytes({1: 8, 5: 4, 0: 1}[wire])
            for content in (
                entry * (SIZE // len(entry)),
                *([] if text else [field(one.number, bytes(SIZE))]),
            ):
                for outer in reversed(around):
                    content = field(outer.number, content)
                yield content
        if one.message_type is not None and one.message_type not in [up.message_type for up in around]:
            yield from lists(one.message_type, (*around, one))


def refused(kind: type[Message], data: bytes) -> None:
    """It costs little to refuse."""
    begin = time.thread_time()
    with pytest.raises(InvalidRequest):
        decoder_of(kind.FromString)(data)
    assert time.thread_time() - begin < SECONDS


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_no_list_of_a_request_is_decoded_beyond_the_maximum(kind: type[Message]) -> None:
    for data in lists(kind.DESCRIPTOR):
        refused(kind, data)


@pytest.mark.parametrize(
    "data",
    [
        field(15, b"") * (SIZE // 2),  # a field that nobody knows
        field(1, b"") * (SIZE // 2),  # one message, again and again
        b"\x78\x01" * (SIZE // 2),
        b"\x7b\x7c" * (SIZE // 2),  # groups, one after the other
        b"\x7b" * SIZE,  # one in the other
        b"\x08" + b"\xff" * SIZE,  # a number without end
        field(1, field(1, b"x")) + field(4, b"") * (SIZE // 2),
    ],
    ids=["unknown", "merged", "numbers", "groups", "nested groups", "endless number", "labels"],
)
def test_nothing_on_the_wire_is_without_bound(data: bytes) -> None:
    refused(pb.GenerateRequest, data)


def test_a_whole_batch_of_outcomes_is_taken() -> None:
    unit = experiments_pb2.Outcome.UnitOfExperiment(experiment="experiments/x", unit="u", unit_hash="h")
    outcome = experiments_pb2.Outcome(unit=unit, metric="m", value=1.5, idempotency_key="k")
    outcome.time.seconds, outcome.time.nanos = 1_800_000_000, 5
    batch = experiments_pb2.RecordOutcomesRequest(sequence=1, outcomes=[outcome] * MAX_OUTCOMES)
    assert count_message(batch.DESCRIPTOR, batch.SerializeToString()) < MAX_ELEMENTS  # type: ignore[arg-type]


def elements(message: Message) -> int:
    """Fields of a decoded message and of those in it."""
    found = 0
    for one, value in message.ListFields():
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            found += len(value)
        elif one.message_type is not None:
            found += sum(1 + elements(inner) for inner in (value if one.is_repeated else [value]))
        else:
            found += len(value) if one.is_repeated else 1
    return found


@given(st.sampled_from(KINDS), st.randoms(use_true_random=False), st.binary(max_size=60), st.integers(0, 3))
def test_what_the_parser_takes_is_counted(
    kind: type[Message], random: Random, junk: bytes, times: int
) -> None:
    data = message_changed([kind])(b"", random)[1:] + junk
    for _ in range(times):
        data = bytes_changed(data, random)
    try:
        message = kind.FromString(data)
    except DecodeError:
        return
    with suppress(InvalidRequest):  # unknown groups among them
        assert count_message(kind.DESCRIPTOR, data) >= elements(message)  # type: ignore[arg-type]
    message.DiscardUnknownFields()  # type: ignore[attr-defined]
    known = elements(message)
    if known < MAX_ELEMENTS // 16:  # a packed number has up to ten bytes, and each counts
        assert count_message(kind.DESCRIPTOR, message.SerializeToString()) >= known  # type: ignore[arg-type]


def test_the_cost_of_a_body_is_what_it_becomes() -> None:
    data = pb.GenerateRequest(input=pb.Input(text="x" * 1000)).SerializeToString()
    assert decoder_of(pb.GenerateRequest.FromString)(data)[1] == len(data) + 2 * ELEMENT_BYTES


async def test_every_method_that_is_served_counts_its_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GrpcServer] = []
    start = GrpcServer.start

    async def noted(self: GrpcServer) -> None:
        made.append(self)
        await start(self)

    monkeypatch.setattr(GrpcServer, "start", noted)
    async with rpcs.serving(tmp_path):
        served = made[0].endpoints
        assert set(request_types()) <= set(served)
        assert {method for method in KSERVE if "Stream" not in method} <= set(served)
        assert all(decoder_of(endpoint.decode) for endpoint in served.values() if endpoint.decode)


def test_a_decoder_that_does_not_count_is_refused() -> None:
    with pytest.raises(TypeError, match="counts the body first"):
        decoder_of(json.loads)


# -- JSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def values(document: Any) -> int:
    """All values in a document, itself among them."""
    inner = document.values() if isinstance(document, dict) else document
    return 1 + (sum(map(values, inner)) if isinstance(document, list | dict) else 0)


@given(VALUES, st.booleans())
@example({'"': "\\", "\\": ["]", "{,}", '"']}, False)
def test_values_are_counted_outside_of_strings_alone(document: Any, spaced: bool) -> None:
    text = json.dumps(document, indent=1 if spaced else None, ensure_ascii=not spaced)
    counted = count_json(text.encode("utf-8", "surrogatepass"))
    assert values(document) <= counted <= 2 * values(document)


@given(st.binary(max_size=80))
def test_any_bytes_are_counted(data: bytes) -> None:
    assert count_json(data) >= 1


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":[' + b"{}," * (SIZE // 3) + b"{}]}",
        b"[" * SIZE,
        b"]" * SIZE,
        b'""' * (SIZE // 2),
        b'"' + b'\\"' * (SIZE // 2),
        b'"' + b"," * SIZE + b'"',
        b"," * SIZE,
        b" " * SIZE,
        b"9" * SIZE,
        b'"\\' * (SIZE // 2),
    ],
    ids=["objects", "open", "closed", "texts", "escapes", "text", "commas", "spaces", "digits", "half"],
)
def test_no_json_takes_long_to_count_and_parse(data: bytes) -> None:
    begin = time.thread_time()
    with suppress(InvalidRequest):
        json_decoder(json.loads)(data)
    assert time.thread_time() - begin < SECONDS


def test_json_is_refused_before_it_is_parsed() -> None:
    def parse(data: bytes) -> Any:
        pytest.fail("parsed")

    for data in (b"[" + b"1," * MAX_ELEMENTS + b"1]", b'""' * (2 * MAX_ELEMENTS + 1)):
        with pytest.raises(InvalidRequest, match="at most"):
            Decoder(count_json, parse)(data)


def test_json_that_is_nested_deeper_than_the_parser_takes_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="not a message"):
        json_decoder(json.loads)(b"[" * 5000 + b"]" * 5000)
