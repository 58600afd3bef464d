"""Signals in states that other tests do not meet: drains under load, an adapter that loads, SIGHUP."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.faults.served import MEDICAL, Served, ask, folders, long_answer, served, until
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import failure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CLIENTS = 16
REFUSED_SECONDS, NOT_SERVING_SECONDS = 0.05, 0.1
UNSEEN_SHARE = 0.05


@dataclass
class Callers:
    """What became of their calls: whole, cut off, refused before they began (and after how long), `unseen`.

    The last ones came as connections were closed, and ended with CANCELLED before anything looked at them.
    """

    whole: int = 0
    cut: int = 0
    unseen: int = 0
    refusals: list[float] = field(default_factory=list)
    not_serving: list[float] = field(default_factory=list)  # seconds from the signal on

    async def call(self, server: Served) -> None:
        """One stream after the other until the server refuses."""
        while True:
            began, events = time.monotonic(), 0
            try:
                async for event in server.inference.StreamGenerate(long_answer(40)):
                    events += 1
                    whole = event.HasField("finished")
            except grpc.aio.AioRpcError as error:
                if events:
                    self.cut += 1
                elif error.code() is grpc.StatusCode.CANCELLED:
                    self.unseen += 1
                elif error.code() is grpc.StatusCode.UNAVAILABLE:
                    self.refusals.append(time.monotonic() - began)
                else:
                    raise
                return
            self.whole += whole

    async def drain(self, root: Path, rng: random.Random) -> int:
        """A server's life under load, ended by SIGTERM; its exit code."""
        flags = ("--set", "lame_duck_seconds=0.3", "--set", "experiments.enabled=false")
        async with served(root, *flags, FAULT_STEP="0.005") as server:
            health = HealthStub(server.channel)
            watch = aiter(health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True))
            assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
            calls = [asyncio.ensure_future(self.call(server)) for _ in range(CLIENTS)]
            await asyncio.sleep(rng.uniform(0.2, 0.7))
            server.process.terminate()
            signalled = time.monotonic()
            assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            self.not_serving.append(time.monotonic() - signalled)
            await asyncio.wait_for(asyncio.gather(*calls), 60)
            return await asyncio.wait_for(server.process.wait(), 60)


@pytest.mark.parametrize("drains", [1, pytest.param(100, marks=pytest.mark.long)])
async def test_drains_under_load_cut_nothing_off(tmp_path: Path, drains: int) -> None:
    root, callers, rng = folders(tmp_path / "server"), Callers(), random.Random(6)
    assert [await callers.drain(root, rng) for _ in range(drains)] == [0] * drains
    assert callers.cut == 0
    assert callers.whole >= drains
    print(f"{callers.whole} whole, {len(callers.refusals)} refused, {callers.unseen} unseen")
    assert len(callers.refusals) + callers.unseen == drains * CLIENTS
    assert callers.unseen <= max(CLIENTS / 2, UNSEEN_SHARE * drains * CLIENTS)
    if drains > 1:  # times, of a run that nothing else disturbs
        assert statistics.median(callers.refusals) <= REFUSED_SECONDS
        assert statistics.median(callers.not_serving) <= NOT_SERVING_SECONDS


async def test_sigterm_while_an_adapter_loads(tmp_path: Path) -> None:
    """When the time is over, waiting calls end with UNAVAILABLE, and the process exits with 0."""
    root = folders(tmp_path / "server")
    flags = ("--set", "drain_seconds=1", "--set", "lame_duck_seconds=0")
    async with served(root, *flags, FAULT_LOAD="60") as server:
        call = server.inference.Generate(ask(routing={"adapter": MEDICAL}), timeout=60)
        waiting = asyncio.ensure_future(failure(call))

        async def loading() -> bool:
            return "LOADING" in (await server.states()).values()

        await until(loading)
        assert await server.end() == 0
        assert (await waiting).code() is grpc.StatusCode.UNAVAILABLE


async def test_sighup_with_a_bad_file_keeps_what_it_said_before(tmp_path: Path) -> None:
    root = folders(tmp_path / "server")
    clients = write_clients(root)
    stale = 'lora_router_credentials_stale{file="clients"}'
    async with served(root, "--clients", str(clients.path)) as server:
        good = clients.path.read_text()
        clients.path.write_text(good[: len(good) // 2])  # in the middle of an entry
        server.process.send_signal(signal.SIGHUP)

        async def told() -> bool:
            return await server.metric(stale) == 1

        await until(told)
        assert (await server.inference.Generate(ask(), metadata=bearer(clients.infer), timeout=20)).text
        assert "the content before stays in force" in server.log
        clients.path.write_text(good)
        server.process.send_signal(signal.SIGHUP)

        async def forgiven() -> bool:
            return await server.metric(stale) == 0

        await until(forgiven)
        assert await server.end() == 0


async def test_a_terminal_that_is_closed_drains_the_server_that_it_started(tmp_path: Path) -> None:
    root = folders(tmp_path / "server")
    terminal, its_end = os.openpty()
    try:
        async with served(root, stdin=its_end) as server:
            assert await server.end(signal.SIGHUP) == 0
            assert '"event": "draining"' in server.log
    finally:
        os.close(terminal)
        os.close(its_end)
