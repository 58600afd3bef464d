"""Bodies are read after every check: how large, how many at once, how long they may take to come."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.errors import InvalidRequest
from router.server import bodies
from router.server.app import ServerApp
from router.server.bodies import decoder_of
from router.server.policy import SMALL
from router.v1 import inference_pb2 as pb
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
    start = time.monotonic()
    error = await failure(half_open(stubs, method, timeout=0.2))
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert time.monotonic() - start < 1.5
    await until(lambda: server.admission.in_flight == 0)


async def test_half_open_calls_end_at_the_servers_limit(start_server: Start, connect: Connect) -> None:
    server = await start_server(body_seconds=0.3)
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


async def test_a_budget_that_is_used_up(start_server: Start, connect: Connect) -> None:
    """A call that brings no body holds its connection's only slot: others wait, health does not."""
    server = await start_server(body_memory_mb=4, max_body_bytes=2 << 20, body_seconds=1.5)
    stubs = connect(server)
    held = half_open(stubs, timeout=5)
    await until(lambda: server.admission.in_flight == 1)
    health = health_pb2_grpc.HealthStub(stubs.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=1)).status == 1
    await asyncio.sleep(0.5)  # else both may end at the same moment
    assert (await stubs.inference.Generate(ask(), timeout=5)).text  # after that has ended
    await failure(held)


async def test_who_waits_too_long_for_the_budget_is_refused(
    start_server: Start, connect: Connect, fakes: SimpleNamespace
) -> None:
    fakes.engine.hold()
    server = await start_server(**vars(fakes), body_memory_mb=1, max_body_bytes=1 << 20, body_seconds=0.1)
    stubs = connect(server)
    held = asyncio.ensure_future(stubs.inference.Generate(ask("w " * 1000)))
    await until(lambda: fakes.engine.status().busy)
    error = await failure(stubs.inference.Generate(ask(), timeout=5))
    assert details(error)["ErrorInfo"].reason == "QUEUE_FULL"
    fakes.engine.resume()
    assert (await held).text
    assert (await stubs.inference.Generate(ask(), timeout=5)).text


def test_bytes_that_are_no_message() -> None:
    with pytest.raises(InvalidRequest, match="not a message of this method"):
        decoder_of(pb.GenerateRequest.FromString)(b"\xff\xff")
