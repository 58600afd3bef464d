"""Background work that fails begins again, and is seen."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from router.server import lifecycle
from router.server.lifecycle import SHOWN_SECONDS, Following
from tests.server.helpers import Start, until


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "AGAIN_SECONDS", 0.001)


async def test_work_that_raises_begins_again_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock, begun = SimpleNamespace(now=1000.0), 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 10:
            raise OverflowError("out of range")

    kept = Following(lambda: clock.now)
    await kept.keep("the clients file", work)
    assert begun == 10
    assert kept.flaws == ["the clients file failed and began again: OverflowError: out of range"]
    assert [record.message for record in caplog.records] == ["the clients file failed; it begins again"]
    clock.now += SHOWN_SECONDS
    assert kept.flaws == []


async def test_it_can_be_cancelled() -> None:
    task = asyncio.create_task(Following().keep("x", asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("name", ["access", "_sending"])
async def test_a_server_outlives_what_it_follows(
    start_server: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("router.server.lifecycle.AGAIN_SECONDS", 0.05)
    server = await start_server()
    running = asyncio.create_task(server.background.until(server.ending.asked))
    follower, calls = getattr(server, name), 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise OverflowError("date value out of range")

    good = follower.look
    monkeypatch.setattr(follower, "look", fail)
    await until(lambda: calls >= 3, 5)
    degraded = server.health.readyz()["degraded"]
    assert any("failed and began again: OverflowError: date value out of range" in one for one in degraded)
    looked = asyncio.Event()

    def look() -> object:
        looked.set()
        return good()

    monkeypatch.setattr(follower, "look", look)
    await asyncio.wait_for(looked.wait(), 5)
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])


async def test_a_start_that_fails_still_ends_the_server(start_server: Start) -> None:
    async def startup() -> None:
        raise RuntimeError("no base")

    server = await start_server(startup=startup, wait=False)
    with pytest.raises(RuntimeError, match="no base"):
        await asyncio.wait_for(server.background.until(server.ending.asked), 5)
