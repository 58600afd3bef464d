"""`lora-router serve` as a process on the real base: ready, ask, drain."""

import asyncio
import signal
import sys

import pytest

from router.client import AsyncClient, Finished
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


async def test_sigterm_lets_a_stream_finish(tmp_path):
    kubernetes = {
        "LORA_ROUTER_BARE": "yes",
        "LORA_ROUTER_PORT": "tcp://10.0.0.1:50051",
        "LORA_ROUTER_SERVICE_HOST": "10.0.0.1",
    }
    for name in ("adapters", "plugins"):
        (tmp_path / name).mkdir()
    with serving(tmp_path, **kubernetes) as (child, address):
        async with AsyncClient(address) as client:
            events = client.stream("Tell me a long story.", max_tokens=60, min_tokens=60)
            seen = [await anext(events) for _ in range(3)]
            child.send_signal(signal.SIGTERM)
            seen += [event async for event in events]
        assert isinstance(seen[-1], Finished)
        assert seen[-1].usage.completion_tokens == 60
        assert await asyncio.to_thread(child.wait, 60) == 0


async def test_a_second_server_on_the_same_port_ends_at_once(server, tmp_path):
    """Whatever the first is; the second is the real one."""
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router.cli", "serve", "--listen", server.address, "--metrics-listen="),
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    _, error = await asyncio.wait_for(second.communicate(), 120)
    assert second.returncode == 2
    assert f"cannot listen on {server.address}" in error.decode()
