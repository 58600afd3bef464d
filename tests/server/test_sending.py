"""An answer that nobody reads ends its call, and lets go of what the call held."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from router.errors import DeadlineExceeded
from router.server import interceptors as module
from router.server.call import Call
from router.server.interceptors import Sending
from router.server.policy import GENERATE


class Slow(Call):
    """A call whose writes wait for `open`."""

    def __init__(self) -> None:
        super().__init__("/S/M", "r", GENERATE)
        self.open = asyncio.Event()
        self.written: list[Any] = []

    async def write(self, message: Any) -> None:
        self.writing_since = time.monotonic()
        await self.open.wait()
        self.written.append(message)
        self.writing_since = 0.0


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Bounds that a test can wait for."""
    monkeypatch.setattr(module, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(module, "PRESSED_SECONDS", 0.02)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    return SimpleNamespace()


async def test_a_write_that_waits_too_long_ends_the_call(looked: SimpleNamespace) -> None:
    sending, call = Sending(lambda: False), Slow()
    following = asyncio.create_task(sending.follow())
    with pytest.raises(DeadlineExceeded, match="was not read in time") as ended:
        async with asyncio.timeout(10), sending.watched(call):
            await call.write("text")
    assert ended.value.metadata["bound"] == "not_reading"
    assert call.written == []
    following.cancel()


async def test_pauses_between_writes_are_nobodys_fault(looked: SimpleNamespace) -> None:
    sending, call = Sending(lambda: False), Slow()
    call.open.set()
    async with sending.watched(call):
        for text in "abc":
            await call.write(text)
            await asyncio.sleep(0.1)
            sending.look()
        await asyncio.sleep(0)
    assert call.written == ["a", "b", "c"]


async def test_another_timeout_inside_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with Sending(lambda: False).watched(Slow()), asyncio.timeout(0.01):
            await asyncio.sleep(1)


async def test_where_places_are_scarce_it_ends_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRESSED_SECONDS", 0.02)
    scarce = False
    sending, call = Sending(lambda: scarce), Slow()

    async def answer() -> None:
        async with sending.watched(call):
            await call.write("text")

    answering = asyncio.create_task(answer())
    await asyncio.sleep(0.1)
    sending.look()
    await asyncio.sleep(0.01)
    assert not answering.done()
    scarce = True
    sending.look()
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(answering, 20)
