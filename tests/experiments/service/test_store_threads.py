from __future__ import annotations

import asyncio
import threading

import pytest

from router.errors import Overloaded, Unavailable
from router.experiments.service import served
from router.experiments.service.outcomes import StoreThreads
from router.experiments.service.served import RegistryOnLoop
from router.types import AdapterRef
from tests.fakes import FakeRegistry, adapter


async def test_calls_run_in_threads_and_too_many_are_refused() -> None:
    threads, go = StoreThreads(threads=1, waiting=1), threading.Event()

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
    threads.close()


async def test_who_gives_up_waiting_keeps_the_place_until_the_work_is_done() -> None:
    threads, go, done = StoreThreads(threads=1, waiting=0), threading.Event(), threading.Event()

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
    threads.close()


async def test_the_registry_is_called_on_the_loop() -> None:
    here, seen = threading.get_ident(), []

    class Registry(FakeRegistry):
        def resolve(self, name, version=""):
            seen.append(threading.get_ident())
            return super().resolve(name, version)

    registry = Registry(None, [adapter("medical"), adapter("medical", "1.1.0")])
    remote = RegistryOnLoop(registry, asyncio.get_running_loop())
    info = await asyncio.to_thread(remote.resolve, "medical")
    assert (info.ref.version, seen) == ("1.0.0", [here])
    _, previous = await asyncio.to_thread(remote.set_default, AdapterRef("medical", "1.1.0"))
    assert previous == AdapterRef("medical", "1.0.0")


def test_a_loop_that_does_not_come_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LOOP_SECONDS", 0.01)
    loop = asyncio.new_event_loop()  # nobody runs it
    with pytest.raises(Unavailable, match="did not come to it"):
        RegistryOnLoop(FakeRegistry(None), loop).resolve("medical")
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
