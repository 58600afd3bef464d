"""Rows 16 and 32 on a real process: signals, exit codes and the port."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from router.v1 import inference_pb2_grpc
from tests.server.helpers import failure, long_stream, stream

ROOT = Path(__file__).parents[2]


async def launch(*arguments: str) -> tuple[Process, str]:
    """A server process and its address ('' if it did not come up)."""
    command = (sys.executable, "-m", "tests.server.serve_fake", *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


@pytest.fixture
async def running() -> AsyncIterator[tuple[Process, str]]:
    process, address = await launch("--step", "0.02", "--drain", "5")
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
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 3) == 0
    assert time.monotonic() - start < 2


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
