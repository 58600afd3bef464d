"""Networks that are late, silent, cut or half closed, clients that vanish: deadlines hold, rows are freed."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import pytest

from router.server.app import ServerApp
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.faults.proxy import Proxy, through
from tests.server.helpers import ask, failure, long_stream, settled, until

pytestmark = pytest.mark.slow
LOCAL = (("grpc.use_local_subchannel_pool", 1),)
CLIENT = """
import sys, grpc
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.server.helpers import long_stream
with grpc.insecure_channel(sys.argv[1]) as channel:
    for _ in InferenceServiceStub(channel).StreamGenerate(long_stream(1500)):
        print("got", flush=True)
"""


@pytest.fixture
async def proxied(
    server: ServerApp, fakes: SimpleNamespace
) -> AsyncIterator[tuple[Proxy, InferenceServiceStub]]:
    """A stub that reaches the server by a proxy; a step takes a moment."""
    fakes.engine.step_seconds = 0.005
    async with through(server.address) as proxy, grpc.aio.insecure_channel(proxy.address, LOCAL) as channel:
        yield proxy, InferenceServiceStub(channel)


def free(server: ServerApp) -> bool:
    """No row, no lease and no place is taken."""
    leases = any(info.leases for info in server.registry.list())
    return not server.engine.status().busy and not leases and server.admission.in_flight == 0


@asynccontextmanager
async def running(stub: InferenceServiceStub, **options: float) -> AsyncIterator[AsyncIterator[object]]:
    """A long answer that has begun."""
    call = stub.StreamGenerate(long_stream(1500, "one medical two"), **options)
    events = aiter(call)
    await anext(events)
    yield events
    call.cancel()


async def test_a_late_network_makes_answers_late_and_no_more(server: ServerApp, proxied) -> None:
    proxy, stub = proxied
    proxy.delay = 0.1
    answers = await asyncio.gather(*(stub.Generate(ask(), timeout=30) for _ in range(20)))
    assert len({answer.response_id for answer in answers}) == 20
    late = await failure(
        stub.Generate(ask("x", sampling={"max_tokens": 999, "min_tokens": 999}), timeout=0.5)
    )
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: free(server), 20)


async def test_a_silent_network_costs_a_deadline(server: ServerApp, proxied) -> None:
    """Neither side hears of the other any more; both keep to the deadline that was said."""
    proxy, stub = proxied
    async with running(stub, timeout=1.0) as events:
        proxy.silent = True
        assert (await failure(events)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: free(server), 20)


async def test_a_reset_frees_at_once(server: ServerApp, proxied) -> None:
    proxy, stub = proxied
    async with running(stub) as events:
        proxy.reset()
        await until(lambda: free(server), 20)
        assert (await failure(events)).code() is grpc.StatusCode.UNAVAILABLE
    assert (await stub.Generate(ask(), timeout=30, wait_for_ready=True)).text  # by a new connection


async def test_a_half_closed_connection_is_given_up(server: ServerApp, proxied) -> None:
    proxy, stub = proxied
    async with running(stub) as events:
        proxy.half_close()
        await until(lambda: free(server), 20)
        assert (await failure(events)).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_a_client_that_is_killed_leaves_nothing(server: ServerApp, fakes: SimpleNamespace) -> None:
    fakes.engine.step_seconds = 0.005
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, server.address, stdout=PIPE)
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), 60)
    assert not free(server)
    child.kill()
    await until(lambda: free(server), 20)
    await child.communicate()
    assert await settled(server)


async def test_who_never_reads_holds_no_row(server: ServerApp) -> None:
    """What the stream may hold is full, then the call waits to be read, until its deadline."""
    request = long_stream(500)
    request.sampling.logprobs = 20
    window = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
    async with grpc.aio.insecure_channel(server.address, (*LOCAL, *window)) as channel:
        stub = InferenceServiceStub(channel)
        call = stub.StreamGenerate(request, timeout=8.0)
        await anext(aiter(call))
        assert (await stub.Generate(ask(), timeout=30)).text  # others are answered meanwhile
        await until(lambda: not server.engine.status().busy, 7)
        assert server.admission.in_flight == 1
        await until(lambda: free(server), 20)
        call.cancel()
