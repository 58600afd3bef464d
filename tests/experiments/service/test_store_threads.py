"""Threads that wait for the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from router.errors import Overloaded
from router.experiments import runtime
from router.experiments.runtime import StoreThreads


@pytest.fixture
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreThreads]:
    """One thread, and room for as many calls that wait as the test says."""
    monkeypatch.setattr(runtime, "THREADS", 1)
    monkeypatch.setattr(runtime, "WAITING", request.param)
    found = StoreThreads()
    yield found
    found.close()


@pytest.mark.parametrize("threads", [1], indirect=True)
async def test_calls_run_in_threads_and_too_many_are_refused(threads: StoreThreads) -> None:
    go = threading.Event()

    def work(text: str) -> str:
        go.wait(5)
        return f"{text} {threading.current_thread().name}"

    first, second = (asyncio.ensure_future(threads.run(work, text)) for text in ("a", "b"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await threads.run(work, "c")
    go.set()
    assert (await first).startswith("a experiments")
    assert (await second).startswith("b experiments")
    assert (await threads.run(work, "d")).startswith("d")


@pytest.mark.parametrize("threads", [0], indirect=True)
async def test_who_gives_up_waiting_keeps_the_place_until_the_work_is_done(threads: StoreThreads) -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(5)
        done.set()

    waiting = asyncio.ensure_future(threads.run(work))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait({waiting})
    with pytest.raises(Overloaded):
        await threads.run(work)
    go.set()
    assert await asyncio.to_thread(done.wait, 5)
    await asyncio.sleep(0.01)
    await threads.run(work)
