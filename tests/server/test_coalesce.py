from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from router.engine.base import Delta, Finished
from router.errors import EngineFailed
from router.server.inference import coalesced
from router.types import FinishReason, TokenLogprob

END = Finished(FinishReason.STOP)


async def source(*events: Delta | Finished | Exception, gap: bool = True) -> AsyncIterator[Delta | Finished]:
    for event in events:
        if gap:
            await asyncio.sleep(0.001)
        if isinstance(event, Exception):
            raise event
        yield event


async def test_a_quick_reader_sees_every_delta() -> None:
    got = [event async for event in coalesced(source(Delta("a"), Delta("b"), END))]
    assert got == [Delta("a"), Delta("b"), END]


async def test_a_slow_reader_gets_joined_deltas() -> None:
    entry = TokenLogprob("b", 1, -0.5)
    got = []
    async with aclosing(coalesced(source(Delta("a"), Delta("b", 1, (entry,)), Delta("c"), END))) as events:
        async for event in events:
            got.append(event)
            await asyncio.sleep(0.05)
    assert got == [Delta("a"), Delta("bc", 2, (entry,)), END]


async def test_interval_joins_steps_after_the_first() -> None:
    deltas = [Delta(str(i)) for i in range(6)]
    got = [event async for event in coalesced(source(*deltas, END), every=3)]
    assert got == [Delta("0"), Delta("123", 3), Delta("45", 2), END]


async def test_an_error_comes_after_what_was_there() -> None:
    events = coalesced(source(Delta("a"), EngineFailed("x"), gap=False))
    assert await anext(events) == Delta("a")
    with pytest.raises(EngineFailed):
        await anext(events)


async def test_closing_stops_the_reading() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[Delta | Finished]:
        try:
            while True:
                yield Delta("x")
                await asyncio.sleep(0)
        finally:
            closed.set()

    async with aclosing(coalesced(endless())) as events:
        assert await anext(events) == Delta("x")
    await asyncio.wait_for(closed.wait(), 1)
