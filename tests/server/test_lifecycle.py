"""The phase of the server, its watches, and how a full server meets its clients."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.errors import Draining, NotLoaded, Overloaded
from router.server import admission, lifecycle
from router.server.admission import PhaseGate, ServerPhase
from router.server.app import ServerApp
from router.server.interceptors import bounded
from router.server.lifecycle import SHOWN_SECONDS, Following
from router.server.policy import ROWS
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, call_of, details, failure, long_stream, until

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def test_gate_by_phase() -> None:
    lifecycle = PhaseGate()
    with pytest.raises(NotLoaded):
        lifecycle.gate()
    lifecycle.phase = ServerPhase.SERVING
    lifecycle.gate()
    lifecycle.drain()
    with pytest.raises(Draining):
        lifecycle.gate()


async def test_a_flood_of_one_client_keeps_no_other_out(
    start_server: Start, fakes: SimpleNamespace, connect: Connect, tmp_path: Path
) -> None:
    clients = write_clients(tmp_path, flood=("infer",), light=("infer",))
    server = await start_server(**vars(fakes), clients=clients.path, max_running=2, max_queue=14)
    fakes.engine.hold()
    inference = connect(server).inference
    flood = [
        asyncio.ensure_future(failure(inference.Generate(ask(), metadata=bearer(clients.flood), timeout=30)))
        for _ in range(13)
    ]
    done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    assert details(refused.result())["ErrorInfo"].reason == "QUEUE_FULL"
    assert server.admission.in_flight == 12
    light = asyncio.ensure_future(inference.Generate(ask(), metadata=bearer(clients.light)))
    await until(lambda: server.admission.in_flight == 13)
    fakes.engine.resume()
    assert (await light).text
    for task in flood:
        task.cancel()


async def test_a_drain_ends_watches() -> None:
    lifecycle = PhaseGate()

    async def watch() -> None:
        call = call_of("/S/Watch", ROWS[REFLECTION], peer="ipv4:127.0.0.1:1")
        async with bounded(call, None):
            with lifecycle.watching(call):
                await asyncio.Event().wait()

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    lifecycle.drain()
    with pytest.raises(Draining):
        await task


async def test_one_too_many_is_refused_at_once(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    fakes.engine.hold()
    server = await start_server(**vars(fakes), max_running=2, max_queue=3)
    stubs = connect(server)
    running = [asyncio.ensure_future(failure(stubs.inference.Generate(ask(), timeout=60))) for _ in range(5)]
    await until(lambda: server.admission.in_flight == 5)
    refused = await failure(stubs.inference.Generate(ask()))
    assert refused.code().name == "UNAVAILABLE"
    assert details(refused)["ErrorInfo"].reason == "QUEUE_FULL"
    assert details(refused)["RetryInfo"].retry_delay.ToMilliseconds() > 0
    health = health_pb2_grpc.HealthStub(stubs.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
    fakes.engine.resume()
    [task.cancel() for task in running]


async def test_the_engines_own_queue_limit_is_passed_on(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    fakes.engine.max_running, fakes.engine.max_queue = 1, 0
    stubs = connect(await start_server(**vars(fakes)))
    events = aiter(stubs.inference.StreamGenerate(long_stream()))
    await anext(events)
    refused = await failure(stubs.inference.StreamGenerate(long_stream()))
    assert details(refused)["ErrorInfo"].reason == "QUEUE_FULL"


POLICY = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
CONFIG = {"methodConfig": [{"name": [{"service": "router.v1.InferenceService"}], "retryPolicy": POLICY}]}
RETRYING = ("grpc.service_config", json.dumps(CONFIG))


async def test_a_service_config_client_retries(
    server: ServerApp, fakes: SimpleNamespace, connect: Connect
) -> None:
    stubs = connect(server, RETRYING)
    fakes.router.error = Overloaded("full", 0.1, bound="engine")

    async def recover() -> None:
        await until(lambda: len(fakes.router.requests) == 1)
        fakes.router.error = None

    task = asyncio.ensure_future(recover())
    events = [event async for event in stubs.inference.StreamGenerate(long_stream(3))]
    await task
    assert events[-1].HasField("finished")
    assert len(fakes.router.requests) == 2


async def test_a_stream_that_began_is_not_retried(
    server: ServerApp, fakes: SimpleNamespace, connect: Connect
) -> None:
    events = aiter(connect(server, RETRYING).inference.StreamGenerate(long_stream()))
    await anext(events)
    fakes.engine.close()
    assert (await failure(events)).code().name == "UNAVAILABLE"
    assert len(fakes.router.requests) == 1


# -- Background work that fails begins again, and is seen.


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(admission, "LOOK_SECONDS", 0.01)


async def test_work_that_raises_begins_again_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock, begun = SimpleNamespace(now=1000.0), 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 10:
            raise OverflowError("out of range")

    kept = Following(lambda: clock.now)
    await kept.keep("the clients file", work)
    assert begun == 10
    assert kept.flaws == ["the clients file failed and began again: OverflowError: out of range"]
    assert [record.message for record in caplog.records] == ["the clients file failed; it begins again"]
    clock.now += SHOWN_SECONDS
    assert kept.flaws == []


async def test_a_server_outlives_what_it_follows(
    start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    running = asyncio.create_task(server.background.until(server.ending.asked))
    follower, calls = server.access, 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise OverflowError("date value out of range")

    good = follower.look
    monkeypatch.setattr(follower, "look", fail)
    await until(lambda: calls >= 3, 5)
    degraded = server.health.readyz()["degraded"]
    assert any("failed and began again: OverflowError: date value out of range" in one for one in degraded)
    looked = asyncio.Event()

    def look() -> object:
        looked.set()
        return good()

    monkeypatch.setattr(follower, "look", look)
    await asyncio.wait_for(looked.wait(), 5)
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])


async def test_a_start_that_fails_still_ends_the_server(start_server: Start) -> None:
    async def startup() -> None:
        raise RuntimeError("no base")

    server = await start_server(startup=startup, wait=False)
    with pytest.raises(RuntimeError, match="no base"):
        await asyncio.wait_for(server.background.until(server.ending.asked), 5)
