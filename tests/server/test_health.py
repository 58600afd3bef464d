"""Rows 8 and 9: health tells the truth before, during and after."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.server.app import ServerApp
from tests.server.helpers import Connect, Start, ask, details, failure

pytestmark = pytest.mark.slow

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
NAMES = ("", "router.v1.InferenceService", "router.v1.AdapterService")


def health_of(stubs: SimpleNamespace) -> Any:
    return health_pb2_grpc.HealthStub(stubs.channel)


async def check(stubs: SimpleNamespace, name: str = "") -> int:
    reply = await health_of(stubs).Check(health_pb2.HealthCheckRequest(service=name))
    return int(reply.status)


async def until(stubs: SimpleNamespace, status: int, seconds: float) -> float:
    start = time.monotonic()
    while await check(stubs) != status:
        assert time.monotonic() - start < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - start


async def test_not_serving_until_loaded(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    gate = asyncio.Event()

    async def startup() -> None:
        await gate.wait()
        fakes.engine.start()

    server = await start_server(**vars(fakes), wait=False, startup=startup)
    stubs = connect(server)
    assert [await check(stubs, name) for name in NAMES] == [NOT_SERVING] * 3
    for call in (stubs.inference.Generate(ask()), stubs.adapters.ListAdapters(_list())):
        refused = await failure(call)
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert details(refused)["ErrorInfo"].reason == "MODEL_LOADING"
        assert "RetryInfo" in details(refused)
    gate.set()
    await server.ready.wait()
    assert [await check(stubs, name) for name in NAMES] == [SERVING] * 3


def _list() -> Any:
    from router.v1 import adapters_pb2

    return adapters_pb2.ListAdaptersRequest()


async def test_unknown_service(stubs: SimpleNamespace) -> None:
    assert (await failure(_check(stubs, "nope"))).code() is grpc.StatusCode.NOT_FOUND
    watch = health_of(stubs).Watch(health_pb2.HealthCheckRequest(service="nope"))
    assert (await anext(aiter(watch))).status == SERVICE_UNKNOWN
    assert not watch.done()
    watch.cancel()


def _check(stubs: SimpleNamespace, name: str) -> Any:
    return health_of(stubs).Check(health_pb2.HealthCheckRequest(service=name))


async def test_the_list_says_what_each_check_says(stubs: SimpleNamespace, server: ServerApp) -> None:
    async def listed() -> dict[str, int]:
        reply = await health_of(stubs).List(health_pb2.HealthListRequest())
        return {name: status.status for name, status in reply.statuses.items()}

    assert set(NAMES) < set(await listed())
    assert await listed() == {name: await check(stubs, name) for name in await listed()}
    await server.health.drain()
    assert set((await listed()).values()) == {NOT_SERVING}


async def test_a_hung_step_loop_is_seen_and_forgiven(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    server = await start_server(**vars(fakes), stall_seconds=0.2)
    stubs = connect(server)
    await asyncio.sleep(0.3)
    assert await check(stubs) == SERVING, "an idle engine is healthy"
    fakes.engine.hold()
    call = asyncio.ensure_future(stubs.inference.Generate(ask()))
    assert await until(stubs, NOT_SERVING, 1.0) >= 0.15
    fakes.engine.resume()
    await call
    await until(stubs, SERVING, 1.0)


async def test_a_failed_engine_is_not_serving(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    server = await start_server(**vars(fakes), stall_seconds=0.2)
    fakes.engine.break_down("device lost")
    await until(connect(server), NOT_SERVING, 1.0)


async def test_watchers_hear_the_drain_and_do_not_hold_it_up(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    server = await start_server(**vars(fakes), lame_duck_seconds=0.1)
    leaver, stayer = connect(server), connect(server)
    request = health_pb2.HealthCheckRequest(service="router.v1.InferenceService")
    left = health_of(leaver).Watch(request)
    stayed = aiter(health_of(stayer).Watch(request))
    assert (await anext(aiter(left))).status == SERVING
    assert (await anext(stayed)).status == SERVING
    left.cancel()
    start = time.monotonic()
    stopping = asyncio.ensure_future(server.stop())
    assert (await anext(stayed)).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError):
        await anext(stayed)
    await stopping
    assert time.monotonic() - start < 0.9


async def test_a_lame_duck_says_that_it_leaves_and_still_answers(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    server = await start_server(**vars(fakes), lame_duck_seconds=0.5)
    stubs = connect(server)
    await stubs.inference.Generate(ask())
    stopping = asyncio.ensure_future(server.stop())
    await asyncio.sleep(0.1)
    assert await check(stubs) == NOT_SERVING
    await stubs.inference.Generate(ask())
    await asyncio.sleep(0.5)
    assert (await failure(stubs.inference.Generate(ask()))).code() is grpc.StatusCode.UNAVAILABLE
    await stopping
