"""Headers of a call that is cut off just then."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from router.server.call import CURRENT, Call, send_headers
from tests.server.helpers import failure


async def cut_off(_: Any, context: Any) -> None:
    """A refusal comes while the headers leave."""
    CURRENT.set(Call("/S/M", "r"))
    sending = asyncio.ensure_future(send_headers(context))
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
        error = await failure(channel.unary_unary("/S/M")(b"", timeout=10))
    await server.stop(0)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ("x-request-id", "r") in tuple(error.initial_metadata())


class Broken:
    """A context whose connection has gone."""

    async def send_initial_metadata(self, _: Any) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("the call is over")


async def test_headers_that_cannot_leave_are_an_error() -> None:
    CURRENT.set(Call("/S/M", "r"))
    with pytest.raises(RuntimeError, match="over"):
        await send_headers(Broken())


async def test_whoever_is_cut_off_hears_of_that_alone() -> None:
    CURRENT.set(Call("/S/M", "r"))
    sending = asyncio.ensure_future(send_headers(Broken()))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
