"""Row 12: deadlines are honoured and free what the request held."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from router.errors import DeadlineExceeded
from router.server.app import ServerApp
from router.server.call import Call
from router.server.interceptors import deadline
from tests.server.helpers import Connect, Start, ask, failure, long_stream


async def settled(server: ServerApp) -> bool:
    """Nothing runs any more, within 100 ms."""
    for _ in range(20):
        idle = not server.engine.status().busy and server.lifecycle.in_flight == 0
        if idle and all(info.leases == 0 for info in server.registry.list()):
            return True
        await asyncio.sleep(0.005)
    return False


async def test_a_callers_deadline(server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace) -> None:
    fakes.engine.step_seconds = 0.02
    request = ask("legal words", sampling={"min_tokens": 500, "max_tokens": 500})
    start = time.monotonic()
    error = await failure(stubs.inference.Generate(request, timeout=0.2))
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert time.monotonic() - start < 0.3
    assert await settled(server)


async def test_the_servers_cap(start_server: Start, fakes: SimpleNamespace, connect: Connect) -> None:
    fakes.engine.step_seconds = 0.02
    server = await start_server(**vars(fakes), max_deadline_seconds=0.2)
    start = time.monotonic()
    error = await failure(connect(server).inference.StreamGenerate(long_stream()))
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert "deadline" in error.details()
    assert time.monotonic() - start < 0.35
    assert await settled(server)


async def test_a_hung_engine_does_not_hold_the_caller(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    fakes.engine.hold()
    error = await failure(stubs.inference.Generate(ask(), timeout=0.1))
    assert error.code().name == "DEADLINE_EXCEEDED"
    await asyncio.sleep(0.05)
    assert server.lifecycle.in_flight == 0


async def test_a_deadline_in_the_past_is_refused() -> None:
    with pytest.raises(DeadlineExceeded, match="when the request arrived"):
        async with deadline(Call("/m", "r"), -1.0, 60.0):
            pytest.fail("ran")


async def test_another_timeout_inside_is_not_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        async with deadline(Call("/m", "r"), None, 60.0):
            raise TimeoutError
