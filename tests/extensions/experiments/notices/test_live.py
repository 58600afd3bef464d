"""Notices of running experiments, sent when the guardian looks, whether or not the webhook answers."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.errors import StoreDown
from router.extensions.experiments import notices, recorder
from router.extensions.experiments.model import Lifecycle
from router.extensions.experiments.notices import Notifier, notice_observer
from router.extensions.experiments.runtime import LiveExperiments
from tests.extensions.experiments.made import experiment
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.notices.receiving import HANG
from tests.extensions.experiments.test_guardian import HARM, Bench
from tests.extensions.experiments.test_recorder import until


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.create(experiment())
    return made


@pytest.fixture
def bench(store) -> Bench:
    return Bench(store)


class Served:
    """Experiments whose looks send notices."""

    def __init__(self, live: LiveExperiments, notifier: Notifier) -> None:
        self.live, self.notifier = live, notifier
        live.guardian.observers.append(notice_observer(notifier, live.store))

    @property
    def running(self) -> bool:
        return self.live.running

    async def close(self) -> None:
        await self.live.guardian.rest()
        await self.notifier.close()
        await self.live.close()


@pytest.fixture
async def begin(store, bench, monkeypatch):
    monkeypatch.setattr(recorder, "RETRY", 0.02)
    made = []

    async def start(notifier: Notifier | None = None) -> Served:
        live = LiveExperiments(store, poll_seconds=0.02, look_seconds=0.01, judge=bench)
        served = Served(live, notifier or Notifier())
        made.append(served)
        served.notifier.start()
        await live.start()
        return served

    yield start
    store.down = False
    bench.go.set()
    for served in made:
        await served.close()


async def test_what_matters_is_told_once_however_often_it_is_looked_at(begin, bench, store, receiver):
    live = await begin(Notifier(receiver.url))
    await until(lambda: bench.looks > 5 and receiver.got)
    ((_, _, body),) = receiver.got
    told = json.loads(body)
    assert (told["experiment"], told["event"], told["arm"]) == ("trial", "may-be-promoted", "new")
    assert live.notifier.sent == {("trial", "may-be-promoted"): 1}
    assert [entry.act for entry in store.trail("trial")] == ["notice"]


async def test_a_stop_is_told_with_its_numbers_by_the_look_that_stops(begin, bench, store, receiver):
    bench.ruling = HARM
    live = await begin(Notifier(receiver.url))
    await until(lambda: receiver.got and not live.running)
    assert store.get("trial").state is Lifecycle.STOPPED
    assert [entry.act for entry in store.trail("trial")] == ["stop", "notice"]
    told = json.loads(receiver.got[0][2])
    assert (told["event"], told["numbers"]["rule"]) == ("stopped-for-harm", "guardrail")


@pytest.mark.slow
@pytest.mark.parametrize("answer", [HANG, 500])
async def test_a_webhook_that_hangs_or_fails_holds_up_neither_looks_nor_the_end(
    begin, bench, store, receiver, monkeypatch, answer
):
    monkeypatch.setattr(notices, "CLOSE_SECONDS", 0.3)
    receiver.say(answer)
    live = await begin(Notifier(receiver.url))
    await until(lambda: receiver.got)
    looks = bench.looks
    bench.ruling = HARM
    await until(lambda: store.get("trial").state is Lifecycle.STOPPED and bench.looks > looks)
    await until(lambda: not live.running)
    await live.close()
    assert live.notifier.deliveries["failed"] == 2
    assert live.notifier.deliveries["delivered"] == 0


async def test_a_webhook_that_is_not_there_is_the_same(begin, bench):
    live = await begin(Notifier("http://127.0.0.1:1/nobody", waits=(0.01,)))
    await until(lambda: live.notifier.deliveries["failed"] == 1)
    looks = bench.looks
    await until(lambda: bench.looks > looks + 2)


async def test_what_was_claimed_is_told_although_the_server_ends(begin, bench, store, receiver):
    bench.go.clear()
    live = await begin(Notifier(receiver.url))
    await until(lambda: bench.looks == 1)
    closing = asyncio.create_task(live.close())
    await asyncio.sleep(0.05)
    bench.go.set()
    await closing
    assert [entry.act for entry in store.trail("trial")] == ["notice"]
    assert len(receiver.got) == live.notifier.deliveries["delivered"] == 1


async def test_a_store_that_is_down_has_nothing_told_until_it_is_back(begin, bench, store, monkeypatch):
    def down(_):
        raise StoreDown("the database cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(store, "audit", down)
        live = await begin()
        await until(lambda: bench.looks > 3)
        assert not live.notifier.sent
    await until(lambda: live.notifier.sent)
    assert live.notifier.sent == {("trial", "may-be-promoted"): 1}
