"""Calls by gRPC: headers of a call that is cut off just then, errors, and services with their rows."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from router.errors import ConfigError, DeadlineExceeded, Overloaded
from router.server.call import Call, Endpoint
from router.server.grpc_adapter import GrpcCall, whole
from router.server.policy import GENERATE, Policy
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from tests.server.helpers import Connect, Start, failure

ENDPOINT = Endpoint("/S/M", GENERATE, lambda request, call: None, bytes)


class Context:
    """A context of a call without a deadline."""

    def invocation_metadata(self) -> Any:
        return (("x-request-id", "r"),)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float | None:
        return None


def call_of(context: Any) -> GrpcCall:
    return GrpcCall(ENDPOINT, context, bytes)


async def cut_off(_: Any, context: Any) -> None:
    """A refusal comes while the headers leave."""
    sending = asyncio.ensure_future(call_of(context).begin())
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the operation is under way
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no longer")


async def test_a_call_that_is_cut_off_while_its_headers_leave_ends_with_its_status() -> None:
    handler = grpc.stream_stream_rpc_method_handler(cut_off)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", {"M": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        error = await failure(channel.unary_unary("/S/M")(b"", timeout=10, metadata=(("x-request-id", "r"),)))
    await server.stop(0)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ("x-request-id", "r") in tuple(error.initial_metadata())


class Broken(Context):
    """A context whose connection has gone."""

    async def send_initial_metadata(self, _: Any) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("the call is over")


async def test_headers_that_cannot_leave_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="over"):
        await call_of(Broken()).begin()


async def test_whoever_is_cut_off_hears_of_that_alone() -> None:
    sending = asyncio.ensure_future(call_of(Broken()).begin())
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_an_operation_goes_on_without_whoever_is_cut_off() -> None:
    free, ended = asyncio.Event(), asyncio.Event()

    async def operation() -> int:
        await free.wait()
        ended.set()
        return 1

    waiting = asyncio.ensure_future(whole(operation()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    free.set()
    await asyncio.wait_for(ended.wait(), 10)
    assert await whole(operation()) == 1


class Late(Context):
    """The context of a call that has `left` seconds."""

    def __init__(self, left: float | None) -> None:
        self._left, self.aborted = left, asyncio.Event()

    def time_remaining(self) -> float | None:
        return self._left

    async def abort(self, *_: Any, **__: Any) -> None:
        self.aborted.set()


async def late(context: Any) -> None:
    await call_of(context).refuse(DeadlineExceeded("too late"))


@pytest.mark.parametrize(("left", "at_once"), [(0.0, False), (None, True), (60.0, True)])
async def test_a_caller_whose_own_deadline_passed_is_sent_no_status_unless_it_stays(
    left: float | None, at_once: bool
) -> None:
    context = Late(left)
    running = asyncio.ensure_future(late(context))
    for _ in range(5):
        await asyncio.sleep(0)
    assert context.aborted.is_set() is at_once
    await asyncio.wait_for(context.aborted.wait(), 10)
    await running
    gone = Late(0.0)
    running = asyncio.ensure_future(late(gone))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not gone.aborted.is_set()


class Left(Context):
    """The context of a caller that has left."""

    async def abort(self, *_: Any, **__: Any) -> None:
        raise grpc.aio.InternalError("the connection is gone")


async def test_a_refusal_that_nobody_is_there_to_read_is_no_error() -> None:
    """The library would log a traceback for each."""
    await call_of(Left()).refuse(Overloaded("full"))


class Echo:
    """Another service, under the methods of InferenceService."""

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        return pb.GenerateResponse(text=f"{call.transport} {request.input.text}")

    StreamGenerate = Route = CountTokens = RecordCorrection = Generate


def add_echo(servicer: Any, server: Any) -> None:
    """What generated code does, under a name of its own."""

    class Renamed:
        def add_generic_rpc_handlers(self, _: Any) -> None: ...

        def add_registered_method_handlers(self, _: str, handlers: Any) -> None:
            server.add_registered_method_handlers("test.Echo", {"Generate": handlers["Generate"]})

    add_InferenceServiceServicer_to_server(servicer, Renamed())


async def test_a_registered_service_is_served_with_its_policy(start_server: Start, connect: Connect) -> None:
    rows = {"/test.Echo/Generate": GENERATE}
    server = await start_server(before=lambda app: app.register_service(add_echo, Echo(), rows))
    echo = connect(server).channel.unary_unary(
        "/test.Echo/Generate", pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString
    )
    assert (await echo(pb.GenerateRequest(input=pb.Input(text="hi")))).text == "grpc hi"


async def test_a_service_without_a_policy_does_not_start(start_server: Start) -> None:
    rows: dict[str, Policy] = {}
    with pytest.raises(ConfigError, match="no row of the policy table for /test"):
        await start_server(before=lambda app: app.register_service(add_echo, Echo(), rows))
