"""The end of a process in which something hangs: in time at the first signal, at once at the second."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from router.v1 import inference_pb2_grpc
from tests.server.helpers import failure, long_stream

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PLUGIN = """
from router import hookimpl
from router.routing import Classifier, Scores

class Reader(Classifier):
    name = "reader"
    def bind(self, base):
        self.base = base
    def classify_batch(self, requests):
        self.base.hidden([r.text for r in requests])

@hookimpl
def register_classifiers(register):
    register(Reader(), timeout_ms=60000)
"""


@asynccontextmanager
async def asked(address: str) -> AsyncIterator[asyncio.Task[grpc.aio.AioRpcError]]:
    """How a call ends that was made half a second ago."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = asyncio.create_task(failure(stub.StreamGenerate(long_stream(5))))
        await asyncio.sleep(0.5)
        yield call
        call.cancel()


@asynccontextmanager
async def serving(folder: Path, what: str, drain: float) -> AsyncIterator[tuple[Process, str]]:
    """The process and its address, once it is ready."""
    for name in ("adapters", "plugins"):
        (folder / name).mkdir()
    (folder / "plugins" / "reader.py").write_text(PLUGIN)
    command = (sys.executable, "-m", "tests.cli.serve_hanging", str(folder), what, str(drain))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    try:
        assert process.stdout is not None
        while not (line := (await process.stdout.readline()).decode()).startswith("gRPC"):
            assert line, "it ended: " + (await process.communicate())[1].decode()
        yield process, line.split()[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: Process) -> tuple[int | None, str]:
    """Exit code and log."""
    log = (await process.communicate())[1].decode()
    return process.returncode, log


async def test_sigterm_ends_a_process_whose_step_hangs(tmp_path: Path) -> None:
    drain = 1.0
    async with serving(tmp_path, "step", drain) as (process, address), asked(address) as call:
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code, log = await asyncio.wait_for(ended(process), 60)
        assert time.monotonic() - begin > drain
        assert (await call).code() is grpc.StatusCode.UNAVAILABLE
    assert code == 1
    assert "the engine did not stop" in log


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, "flush", 600.0) as (process, address), asked(address):
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        code, _ = await asyncio.wait_for(ended(process), 60)
    assert code != 0


async def test_what_hangs_after_the_drain_is_cut_off_and_shown(tmp_path: Path) -> None:
    """Whatever it is: the stacks of all threads say what."""
    async with serving(tmp_path, "flush", 0.5) as (process, _):
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code, log = await asyncio.wait_for(ended(process), 60)
        assert time.monotonic() - begin > 3.5
    assert code == 1
    assert "Timeout (" in log
    assert "serve_hanging.py" in log
