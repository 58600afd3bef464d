"""Events on their way from the engine's thread to the event loops."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from router.engine.base import Delta, Finished
from router.engine.handoff import EventDispatcher, Events, Stream, deliver
from router.errors import EngineFailed
from router.types import FinishReason


def stream() -> Stream:
    return Stream(lambda _: None, lambda _: None)


async def texts(one: Stream) -> list[str]:
    return [event.text async for event in one if isinstance(event, Delta)]


async def test_events_arrive_in_order_and_all_before_it_closes() -> None:
    dispatcher, streams = EventDispatcher(), [stream() for _ in range(3)]
    dispatcher.start()
    readers = [asyncio.ensure_future(texts(one)) for one in streams]
    for step in range(50):
        dispatcher.send([(one, Delta(f"{step} ")) for one in streams])
    dispatcher.send([(one, Finished(FinishReason.STOP)) for one in streams])
    await asyncio.to_thread(dispatcher.close)
    told = ["".join(found) for found in await asyncio.gather(*readers)]
    assert told == ["".join(f"{step} " for step in range(50))] * 3


async def test_a_loop_is_woken_once_for_all_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken = asyncio.get_running_loop(), []
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: woken.append(call))
    deliver([(stream(), Delta("a")) for _ in range(16)])
    assert len(woken) == 1


async def test_who_cannot_be_reached_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @property
        def loop(self) -> asyncio.AbstractEventLoop:
            raise RuntimeError("a bug")

    dispatcher, one = EventDispatcher(), stream()
    dispatcher.start()
    broken: Any = Broken()
    with caplog.at_level(logging.ERROR):
        dispatcher.send([(broken, Delta("lost"))])
        dispatcher.send([(one, Delta("told")), (one, Finished(FinishReason.STOP))])
        assert await texts(one) == ["told"]
    assert "cannot be delivered" in caplog.text
    await asyncio.to_thread(dispatcher.close)


def test_a_loop_that_is_closed_is_passed_over() -> None:
    async def begun() -> Stream:
        return stream()

    events: Events = [(asyncio.run(begun()), Delta("nobody"))]
    deliver(events)


async def test_who_sends_does_not_wait_for_the_loop() -> None:
    dispatcher, one, sent = EventDispatcher(), stream(), threading.Event()
    dispatcher.start()

    def send() -> None:
        dispatcher.send([(one, Delta("a"))])
        sent.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert sent.wait(10), "the loop is held up here, and the sender must not be"
    thread.join()
    await asyncio.to_thread(dispatcher.close)


async def test_a_reader_that_leaves_and_an_error() -> None:
    left: list[Stream] = []
    one = Stream(left.append, lambda _: None)
    reader = asyncio.ensure_future(texts(one))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert left == [one]
    one.put(Delta("nobody reads it"))
    failed = stream()
    failed.put(EngineFailed("a bug"))
    with pytest.raises(EngineFailed):
        await texts(failed)
