"""Health and probes: the same judgement while the server loads, serves, hangs and stops."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.errors import ConfigError
from router.extensions.experiments.runtime import STORE_DOWN
from router.server import listen
from router.server.app import ServerApp
from router.server.listen import METADATA_BYTES
from router.v1.adapters_pb2 import ListAdaptersRequest
from tests.server.helpers import Connect, Start, ask, details, failure, long_stream, messages, until

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
NAMES = ("", "router.v1.InferenceService", "router.v1.AdapterService")


def health_of(stubs: SimpleNamespace) -> Any:
    return health_pb2_grpc.HealthStub(stubs.channel)


async def check(stubs: SimpleNamespace, name: str = "") -> int:
    reply = await health_of(stubs).Check(health_pb2.HealthCheckRequest(service=name))
    return int(reply.status)


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
    server.health.drain()
    assert set((await listed()).values()) == {NOT_SERVING}


async def test_watchers_hear_the_drain_and_do_not_hold_it_up(
    start_server: Start, fakes: SimpleNamespace, connect: Connect
) -> None:
    server = await start_server(**vars(fakes), lame_duck_seconds=0.1, drain_seconds=600)
    leaver, stayer = connect(server), connect(server)
    request = health_pb2.HealthCheckRequest(service="router.v1.InferenceService")
    left = health_of(leaver).Watch(request)
    stayed = aiter(health_of(stayer).Watch(request))
    assert (await anext(aiter(left))).status == SERVING
    assert (await anext(stayed)).status == SERVING
    left.cancel()
    stopping = asyncio.ensure_future(server.stop())
    assert (await anext(stayed)).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError):
        await anext(stayed)
    await asyncio.wait_for(stopping, 60)


@pytest.mark.slow
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


# -- Probes and scrapes over HTTP.


ANY = "127.0.0.1:0"


async def exchange(address: str, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    try:
        writer.write(request)
        return await reader.read()
    finally:  # a read that was refused or timed out leaves no open socket to the next test
        writer.close()


async def get(address: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    answer = await exchange(
        address, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def probe(server: ServerApp, path: str) -> tuple[int, Any]:
    status, body = await get(server.metrics_address, path)
    return status, json.loads(body)


async def until_checked(stubs: SimpleNamespace, status: int, seconds: float = 20.0) -> None:
    """gRPC says the same soon."""
    end = time.monotonic() + seconds
    while await check(stubs) != status:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def until_status(server: ServerApp, path: str, status: int, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while (answer := await probe(server, path))[0] != status:
        assert time.monotonic() < end, answer
        await asyncio.sleep(0.01)
    return answer[1]


async def status_of(server: ServerApp, request: bytes) -> bytes:
    return (await exchange(server.metrics_address, request))[9:12]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9464", b"200"),
        ("127.0.0.1:9464", b"200"),
        ("[::1]:9464", b"200"),
        ("Metrics.Example:9464", b"200"),
        ("rebound.example:9464", b"403"),
        ("10.0.0.7:9464", b"403"),
        ("localhost\r\nHost: rebound.example", b"400"),
    ],
)
async def test_on_loopback_it_answers_under_its_own_names(start: Start, host: str, status: bytes) -> None:
    """A page that a browser here loads may have its name point here."""
    server = await start(http_hosts=("metrics.example",))
    head = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = await exchange(server.metrics_address, head.encode())
    assert answer[9:12] == status
    assert (b'"phase"' in answer) == (status == b"200")


async def test_a_probe_without_a_host_is_answered(start: Start) -> None:
    """A browser always names one."""
    assert await status_of(await start(), b"GET /healthz HTTP/1.0\r\n\r\n") == b"200"


async def test_elsewhere_it_answers_under_every_name(start: Start) -> None:
    """Probes of Kubernetes name the pod's address, scrapers a service."""
    server = await start(metrics_listen="0.0.0.0:0")
    server.metrics_address = f"127.0.0.1:{server.metrics_address.rpartition(':')[2]}"
    for host in ("10.1.2.3:9464", "lora-router.svc:9464"):
        assert await status_of(server, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) == b"200"


async def test_what_is_asked_of_them(start: Start) -> None:
    at = (await start()).metrics_address
    assert (await get(at, "/healthz?verbose=1"))[0] == 200
    assert [(await get(at, path))[0] for path in ("/", "/Healthz")] == [404] * 2
    assert [(await get(at, "/healthz", verb))[0] for verb in ("POST", "PUT", "DELETE")] == [405] * 3
    assert await get(at, "/healthz", "HEAD") == (200, b"")


async def test_a_head_without_end_is_refused_and_others_go_on(start: Start) -> None:
    at = (await start()).metrics_address
    answer = await exchange(at, b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 2 * METADATA_BYTES)
    assert answer[9:12] in (b"400", b"431")
    assert (await get(at, "/healthz"))[0] == 200


async def test_a_connection_has_some_seconds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "PROBE_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection(*(await start()).metrics_address.rsplit(":", 1))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_an_address_in_use_is_a_clear_error(start: Start) -> None:
    server = await start()
    with pytest.raises(ConfigError, match="--set metrics_listen=HOST:PORT"):
        await start(metrics_listen=server.metrics_address)


@pytest.fixture
def start(start_server: Start, fakes: SimpleNamespace) -> Callable[..., Awaitable[ServerApp]]:
    async def begin(**said: Any) -> ServerApp:
        return await start_server(**{**vars(fakes), "metrics_listen": ANY, **said})

    return begin


async def test_alive_while_it_loads_and_ready_when_it_has(
    start: Start, connect: Connect, fakes: SimpleNamespace
) -> None:
    gate = asyncio.Event()

    async def startup() -> None:
        await gate.wait()
        fakes.engine.start()

    server = await start(wait=False, startup=startup)
    stubs = connect(server)
    assert [await check(stubs, name) for name in NAMES] == [NOT_SERVING] * 3
    for call in (stubs.inference.Generate(ask()), stubs.adapters.ListAdapters(ListAdaptersRequest())):
        refused = details(await failure(call))
        assert refused["ErrorInfo"].reason == "MODEL_LOADING"
        assert "RetryInfo" in refused
    assert (await probe(server, "/healthz"))[0] == 200
    status, body = await probe(server, "/readyz")
    assert (status, body["reasons"]) == (503, ["the base model is still loading"])
    assert (body["status"], body["phase"]) == ("failing", "loading")
    gate.set()
    await server.ready.wait()
    status, body = await probe(server, "/readyz")
    assert (status, body["status"], body["reasons"], body["phase"]) == (200, "ok", [], "serving")
    assert body["degraded"] == []
    assert [await check(stubs, name) for name in NAMES] == [SERVING] * 3


async def test_a_step_that_hangs_fails_both_and_is_forgiven(
    start: Start, connect: Connect, fakes: SimpleNamespace
) -> None:
    server = await start(stall_seconds=0.2)
    stubs = connect(server)
    await asyncio.sleep(0.3)
    assert (await probe(server, "/healthz"))[0] == 200, "an idle engine is alive"
    fakes.engine.hold()
    call = asyncio.ensure_future(stubs.inference.Generate(ask()))
    for path in ("/healthz", "/readyz"):
        body = await until_status(server, path, 503)
        assert body["reasons"][0].startswith("no step for ")
        assert body["requests"] == {"running": 0, "waiting": 1}
    await until_checked(stubs, NOT_SERVING)
    fakes.engine.resume()
    await call
    for path in ("/healthz", "/readyz"):
        assert (await until_status(server, path, 200))["reasons"] == []
    await until_checked(stubs, SERVING)


async def test_an_engine_that_failed_fails_both(
    start: Start, connect: Connect, fakes: SimpleNamespace
) -> None:
    server = await start(stall_seconds=0.2)
    fakes.engine.break_down("device lost at /srv/secret")
    for path in ("/healthz", "/readyz"):
        status, body = await probe(server, path)
        assert (status, body["reasons"]) == (503, ["engine failed"])
    await until_checked(connect(server), NOT_SERVING)


async def test_not_ready_from_the_first_moment_of_a_drain_and_alive_to_its_end(
    start: Start, connect: Connect
) -> None:
    server = await start(lame_duck_seconds=0.3, drain_seconds=20.0)
    running = asyncio.ensure_future(messages(connect(server).inference.StreamGenerate(long_stream(800))))
    await until(lambda: server.admission.in_flight > 0)
    stopping = asyncio.ensure_future(server.stop())
    body = await until_status(server, "/readyz", 503)
    assert (body["phase"], body["reasons"]) == ("draining", ["the server is stopping"])
    seen: set[tuple[int, int]] = set()
    while server.admission.in_flight:
        try:
            async with asyncio.timeout(10):
                seen.add(((await probe(server, "/readyz"))[0], (await probe(server, "/healthz"))[0]))
        except (ConnectionError, TimeoutError):  # taken as the socket closed: asyncio then forgets it
            assert not server.admission.in_flight
    assert seen == {(503, 200)}
    await asyncio.gather(running, stopping)


async def test_a_hang_while_it_drains_is_told_beside_the_drain(
    start: Start, connect: Connect, fakes: SimpleNamespace
) -> None:
    server = await start(stall_seconds=0.2, drain_seconds=5.0)
    fakes.engine.hold()
    call = asyncio.ensure_future(connect(server).inference.Generate(ask()))
    await until(lambda: fakes.engine.busy)
    stopping = asyncio.ensure_future(server.stop())
    assert (await until_status(server, "/healthz", 503))["phase"] == "draining"
    reasons = (await probe(server, "/readyz"))[1]["reasons"]
    assert reasons[0] == "the server is stopping"
    assert reasons[1].startswith("no step for ")
    fakes.engine.resume()
    await call
    await stopping


async def test_a_store_that_is_down_is_told_and_holds_up_nothing(start: Start) -> None:
    server = await start()
    server.health.know((), {"router.v1.ExperimentService": lambda: STORE_DOWN})
    status, body = await probe(server, "/readyz")
    assert (status, body["reasons"]) == (200, [])
    assert body["degraded"] == [STORE_DOWN]
