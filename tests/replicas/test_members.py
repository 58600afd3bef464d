"""Replicas that come and are let go while requests run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from router.engine.base import AdapterArtifact, Finished, PoolingRequest
from router.types import FinishReason
from tests.engine.contract import until
from tests.replicas.conftest import Fleet, Make, job, text_of
from tests.replicas.test_failures import outcome


def up(made: Fleet) -> list[str]:
    return [replica.name for replica in made.engine.replicas if replica.up]


def draining(made: Fleet) -> list[str]:
    return [replica.name for replica in made.engine.replicas if replica.draining]


def members(made: Fleet) -> list[str]:
    """Whom this edge has something to do with."""
    return [replica.name for replica in made.engine.replicas]


@asynccontextmanager
async def clients(made: Fleet, adapters: list[AdapterArtifact], number: int = 6) -> AsyncIterator[list[str]]:
    """Requests for all adapters and the base, one after the other by each; what was not answered as asked."""
    stop, lost, count = asyncio.Event(), [], 0

    async def client(at: int) -> None:
        nonlocal count
        while not stop.is_set():
            adapter = [None, *adapters][at % (len(adapters) + 1)]
            at += 1
            got = await outcome(made.engine.submit(job(adapter=adapter.digest if adapter else None)))
            if got != f"[{adapter.digest[:8] if adapter else 'base'}] one two three":
                lost.append(got)
            count += 1

    tasks = [asyncio.create_task(client(i)) for i in range(number)]
    try:
        yield lost
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    assert count > number


async def test_one_after_the_other_is_let_go_and_nothing_is_lost(fleet: Make) -> None:
    made = await fleet(3, changing=True)
    adapters = await made.load(*(f"a{i}" for i in range(6)))
    async with clients(made, adapters) as lost:
        await until(lambda: made.engine.status().steps > 20)
        steps = made.engine.status().steps
        for names in (["1", "2", "3"], ["2", "3", "4"], ["3", "4", "5"]):
            made.membership.now = tuple(names)
            await until(lambda names=names: up(made) == names == members(made))
    assert lost == []
    assert {link.starts for link in made.links} == {1}
    assert made.engine.status().steps >= steps  # those of the old ones stay in the sum
    assert made.engine.status().flaws == ()


async def test_fewer_answer_for_all_adapters_nevertheless(fleet: Make) -> None:
    made = await fleet(3, changing=True)
    adapters = await made.load(*(f"a{i}" for i in range(6)))
    async with clients(made, adapters) as lost:
        made.membership.now = ("2",)
        await until(lambda: members(made) == ["2"])
    assert lost == []
    for adapter in adapters:
        assert await outcome(made.engine.submit(job(adapter=adapter.digest))) == text_of(adapter)


async def test_a_long_stream_goes_on_to_its_end_on_one_that_drains(fleet: Make) -> None:
    made = await fleet(2, changing=True)
    (adapter,) = await made.load("a")
    (at,) = made.homes(adapter)
    other = "1" if at == "0" else "0"
    made.made[at].hold()
    long = made.engine.submit(job(adapter=adapter.digest, min_tokens=50))
    await until(lambda: made.made[at].busy)
    made.membership.now = (other,)
    await until(lambda: draining(made) == [at])
    had = len(made.made[at].jobs)
    assert [await outcome(made.engine.submit(job(adapter=adapter.digest))) for _ in range(4)]
    assert [await outcome(made.engine.submit(job())) for _ in range(8)]
    assert len(made.made[at].jobs) == had  # nothing new
    assert at in members(made)
    made.made[at].resume()
    events = [event async for event in long]
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].usage.completion_tokens) == (FinishReason.STOP, 50)
    await until(lambda: at not in members(made))
    assert up(made) == [other]


async def test_one_that_dies_while_it_drains_is_not_started_again(fleet: Make) -> None:
    made = await fleet(2, changing=True)
    for engine in made.made.values():
        engine.hold()
    fresh = [made.engine.submit(job()) for _ in range(4)]
    await until(lambda: all(engine.busy for engine in made.made.values()))
    made.membership.now = ("1",)
    await until(lambda: draining(made) == ["0"])
    await asyncio.to_thread(made.link("0").kill)
    made.made["1"].resume()
    assert {await outcome(generation) for generation in fresh} == {"[base] one two three"}
    await until(lambda: [replica.name for replica in made.engine.replicas] == ["1"])
    assert made.link("0").starts == 1


async def test_the_last_one_up_answers_though_it_drains(fleet: Make) -> None:
    made = await fleet(2, changing=True)
    for engine in made.made.values():
        engine.hold()
    held = [made.engine.submit(job()) for _ in range(2)]  # one each
    await until(lambda: all(engine.busy for engine in made.made.values()))
    made.membership.now = ("0",)
    await until(lambda: draining(made) == ["1"])
    loop, waits, start = asyncio.get_running_loop(), asyncio.Event(), made.link("0").start

    def late() -> Any:
        asyncio.run_coroutine_threadsafe(waits.wait(), loop).result(10)
        return start()

    made.link("0").start = late  # type: ignore[method-assign]
    await asyncio.to_thread(made.link("0").kill)
    await until(lambda: up(made) == ["1"])
    asked = made.engine.submit(job())
    made.made["1"].resume()
    assert np.isfinite(await made.engine.read(PoolingRequest([65, 66], depth=0.5))).all()
    assert [await outcome(generation) for generation in (asked, *held)] == ["[base] one two three"] * 3
    waits.set()
    await until(lambda: up(made) == ["0"])


async def test_a_cancel_ends_what_keeps_a_replica(fleet: Make) -> None:
    made = await fleet(2, changing=True)
    for engine in made.made.values():
        engine.hold()
    asked = [made.engine.submit(job(min_tokens=9)) for _ in range(2)]
    await until(lambda: all(engine.busy for engine in made.made.values()))
    made.membership.now = ("1",)
    await until(lambda: draining(made) == ["0"])
    for generation in asked:
        generation.cancel()
    for engine in made.made.values():
        engine.resume()
    await until(lambda: "0" not in members(made))
    for generation in asked:
        events = [event async for event in generation]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason is FinishReason.CANCELLED
