"""`lora-router serve` as a process on the real base: ready, ask, drain."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager

import pytest

from router.cli.demo_server import free_address
from router.client import AsyncClient, Finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@asynccontextmanager
async def serving(folder, **environment):
    """A server on a free port; yields the process and its address once it says that it is ready."""
    address = free_address()
    flags = [
        "--listen",
        address,
        "--metrics-listen=",
        "--set",
        "load_plugins=keywords,linear",
        "--threads",
        "2",
    ]
    with (folder / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router.cli", "serve", *flags),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=os.environ | environment,
        )
        try:
            said = ""
            while f"gRPC      {address}" not in said:
                line = await asyncio.wait_for(child.stdout.readline(), 300)
                assert line, (folder / "log").read_text()
                said += line.decode()
            yield child, address
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


async def test_sigterm_lets_a_stream_finish(tmp_path):
    kubernetes = {"LORA_ROUTER_PORT": "tcp://10.0.0.1:50051", "LORA_ROUTER_SERVICE_HOST": "10.0.0.1"}
    async with serving(tmp_path, **kubernetes) as (child, address), AsyncClient(address) as client:
        events = client.stream("Tell me a long story.", max_tokens=60, min_tokens=60)
        seen = [await anext(events) for _ in range(3)]
        child.send_signal(signal.SIGTERM)
        seen += [event async for event in events]
        assert isinstance(seen[-1], Finished)
        assert seen[-1].usage.completion_tokens == 60
        assert await asyncio.wait_for(child.wait(), 60) == 0


async def test_a_second_server_on_the_same_port_ends_at_once(tmp_path):
    async with serving(tmp_path) as (_, address):
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router.cli", "serve", "--listen", address, "--metrics-listen="),
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path,
        )
        _, error = await asyncio.wait_for(second.communicate(), 120)
        assert second.returncode == 2
        assert f"cannot listen on {address}" in error.decode()
