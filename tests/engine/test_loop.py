"""A step that hangs, on the real loop: health says so in time, whatever came before it, and takes it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.engine.base import Job
from router.engine.torch_engine import TorchEngine
from router.server.app import ServerApp
from tests.engine import tiny
from tests.engine.hanging import Hang, hanging
from tests.fakes import FakeRegistry, FakeRouter
from tests.server.helpers import Connect, Start, ask, long_stream, until

pytestmark = pytest.mark.slow

STALL = 0.8
SERVING, NOT_SERVING = 1, 2


@pytest.fixture
def engine() -> Iterator[TorchEngine]:
    made = tiny.engine("llama")
    yield made
    made.close()


@pytest.fixture
def hang(engine: TorchEngine) -> Iterator[Hang]:
    made = hanging(engine)
    yield made
    made.let_go()


@pytest.fixture
async def served(engine: TorchEngine, start_server: Start) -> ServerApp:
    registry = FakeRegistry(engine, [])
    return await start_server(
        engine=engine, registry=registry, router=FakeRouter(registry), startup=nothing, stall_seconds=STALL
    )


async def nothing() -> None:
    """The engine has been started."""


async def check(stubs: SimpleNamespace) -> int:
    reply = await health_pb2_grpc.HealthStub(stubs.channel).Check(health_pb2.HealthCheckRequest())
    return int(reply.status)


async def seconds_until(stubs: SimpleNamespace, status: int) -> float:
    begin = time.monotonic()
    while await check(stubs) != status:
        assert time.monotonic() - begin < 3 * STALL, "never"
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


@pytest.mark.parametrize("before", ["an answer", "steps"])
async def test_health_sees_a_step_that_hangs_and_takes_it_back(
    before: str, served: ServerApp, hang: Hang, connect: Connect
) -> None:
    stubs = connect(served)
    if before == "an answer":
        await stubs.inference.Generate(ask(sampling={"max_tokens": 3}))
    if before == "steps":
        events = aiter(stubs.inference.StreamGenerate(long_stream(150)))
        await anext(events)
        await anext(events)
    else:
        await asyncio.sleep(STALL * 1.5)
        assert await check(stubs) == SERVING, "an idle engine is healthy"
    hang.begin()
    call = asyncio.ensure_future(stubs.inference.Generate(ask(sampling={"max_tokens": 3})))
    await until(hang.hangs.is_set)
    assert STALL / 2 < await seconds_until(stubs, NOT_SERVING) < STALL + 0.1
    assert served.engine.status().busy
    hang.let_go()
    await call
    assert await seconds_until(stubs, SERVING) < STALL
    await until(lambda: not served.engine.status().busy or before == "steps")


async def test_work_that_hangs_outside_a_step_is_seen(
    served: ServerApp, hang: Hang, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a row that is being made."""

    def held(job: Job, stream: object, inactive: int) -> None:
        hang.wait()
        raise ValueError("a bug")

    monkeypatch.setattr(served.engine, "_row", held)
    hang.begin()
    stubs = connect(served)
    call = asyncio.ensure_future(stubs.inference.Generate(ask(), timeout=5))
    assert await seconds_until(stubs, NOT_SERVING) < STALL + 0.1
    hang.let_go()
    with pytest.raises(Exception, match="internal error"):
        await call
    assert await seconds_until(stubs, SERVING) < STALL
