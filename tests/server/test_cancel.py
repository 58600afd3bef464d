"""Row 13: a caller that leaves costs nothing more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from router.server.app import ServerApp
from tests.server.helpers import ask, long_stream, until
from tests.server.test_deadline import settled


@pytest.mark.parametrize("leave", ["cancel", "disconnect"])
async def test_leaving_mid_stream_frees_row_and_lease(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace, leave: str
) -> None:
    fakes.engine.step_seconds = 0.02
    call = stubs.inference.StreamGenerate(long_stream(text="legal words"))
    events = aiter(call)
    for _ in range(3):
        await anext(events)
    assert fakes.registry.get("legal").leases == 1
    steps = fakes.engine.steps
    if leave == "cancel":
        call.cancel()
    else:
        await stubs.channel.close()
    await asyncio.sleep(0.2)
    assert fakes.engine.steps - steps <= 2
    assert await settled(server)


async def test_leaving_a_unary_call(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    fakes.engine.step_seconds = 0.02
    call = stubs.inference.Generate(ask("legal", sampling={"min_tokens": 500, "max_tokens": 500}))
    await until(lambda: fakes.engine.steps > 0)
    call.cancel()
    assert await settled(server)


async def test_leaving_while_the_adapter_loads(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    fakes.engine.load_seconds = 5
    call = stubs.inference.Generate(ask("legal"))
    await asyncio.sleep(0.1)
    call.cancel()
    assert await settled(server)


async def test_a_reader_that_pauses_gets_everything(fakes: SimpleNamespace, stubs: SimpleNamespace) -> None:
    events = aiter(stubs.inference.StreamGenerate(long_stream(2000)))
    got = [await anext(events)]
    await asyncio.sleep(0.3)
    got += [event async for event in events]
    assert sum(event.delta.tokens for event in got) == 2000
    assert got[-1].finished.usage.completion_tokens == 2000
