"""Calls by gRPC: headers of a call that is cut off just then, errors, and services with their rows."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from router.errors import DeadlineExceeded, Overloaded
from router.server.call import Endpoint
from router.server.grpc_adapter import GrpcCall, whole
from router.server.policy import GENERATE
from tests.server.helpers import failure

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
    await call_of(Left()).refuse(Overloaded("full", bound="engine"))
