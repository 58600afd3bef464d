"""The life of a server: ready, asked to stop, failed; signals, exit codes and the port of a real process."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from types import SimpleNamespace

import grpc
import pytest

from router.config import Settings
from router.errors import ConfigError
from router.server.app import ServerApp
from router.v1 import inference_pb2_grpc
from tests.server.helpers import failure, launch, long_stream, stream

pytestmark = pytest.mark.slow

SETTINGS = Settings(listen="127.0.0.1:0", metrics_listen="", drain_seconds=1.0, lame_duck_seconds=0.05)


def app_of(fakes: SimpleNamespace, **options: object) -> ServerApp:
    return ServerApp(SETTINGS, fakes.engine, fakes.registry, fakes.router, **options)


async def test_run_says_when_it_is_ready_and_ends_when_asked(fakes: SimpleNamespace) -> None:
    ready: list[bool] = []
    app = app_of(fakes, on_ready=lambda: ready.append(app.ready.is_set()))
    running = asyncio.create_task(app.run())
    await app.ready.wait()
    app.request_stop()
    await running
    assert ready == [True]


@pytest.mark.parametrize("error", [ConfigError("no such model"), ValueError("a bug")])
async def test_a_failed_startup_ends_the_server_with_its_error(
    fakes: SimpleNamespace, error: Exception
) -> None:
    async def startup() -> None:
        raise error

    with pytest.raises(type(error)):
        await app_of(fakes, startup=startup).run()


async def test_a_server_that_cannot_judge_its_health_ends(fakes: SimpleNamespace) -> None:
    app = app_of(fakes)
    running = asyncio.create_task(app.run())
    await app.ready.wait()
    app.health._status = None
    with pytest.raises(TypeError):
        await asyncio.wait_for(running, 3)


@pytest.fixture
async def running() -> AsyncIterator[tuple[Process, str]]:
    process, address = await launch("--step", "0.02", "--drain", "600")
    yield process, address
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def test_sigterm_lets_a_stream_finish(running: tuple[Process, str]) -> None:
    process, address = running
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        events = aiter(stub.StreamGenerate(long_stream(60)))
        await anext(events)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.4)
        assert (await failure(stub.StreamGenerate(stream()))).code() is grpc.StatusCode.UNAVAILABLE
        rest = [event async for event in events]
    assert rest[-1].finished.usage.completion_tokens == 60
    assert await asyncio.wait_for(process.wait(), 3) == 0


async def test_past_the_grace_a_stream_is_cut_and_the_exit_is_clean() -> None:
    process, address = await launch("--step", "0.02", "--drain", "0.3")
    async with grpc.aio.insecure_channel(address) as channel:
        events = aiter(inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(long_stream(1000)))
        await anext(events)
        process.send_signal(signal.SIGINT)
        assert (await failure(events)).code() is grpc.StatusCode.UNAVAILABLE
    await process.communicate()
    assert process.returncode == 0


async def test_a_second_signal_stops_at_once(running: tuple[Process, str]) -> None:
    process, address = running
    async with grpc.aio.insecure_channel(address) as channel:
        events = aiter(inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(long_stream(1000)))
        await anext(events)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0  # the drain takes ten minutes


async def test_sigterm_while_loading() -> None:
    process, _ = await launch("--start", "30")
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 3)
    assert process.returncode == 0


async def test_a_second_server_on_the_port_exits(running: tuple[Process, str]) -> None:
    _, address = running
    second, printed = await launch("--listen", address)
    _, errors = await second.communicate()
    assert second.returncode == 2
    assert printed == ""
    assert f"cannot listen on {address}" in errors.decode()


def test_by_default_a_shutdown_fits_the_grace_of_kubernetes() -> None:
    assert Settings().shutdown_seconds < 30
