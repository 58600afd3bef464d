"""The queue to the store: ordered, bounded, never in the way, durable when it says so; and whether the store
answers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from router.errors import Overloaded, StoreDown
from router.extensions.experiments.model import Accepted
from router.extensions.experiments.recorder import Availability, Recorder
from tests.extensions.experiments.made import experiment, exposure, outcome
from tests.extensions.experiments.memory_store import MemoryStore


class Slow(MemoryStore):
    """Counts transactions, and waits for `go` in each."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.begun, self.sizes = threading.Event(), threading.Event(), []
        self.go.set()
        self.create(experiment())

    def record(self, outcomes):
        self.begun.set()
        self.go.wait(5)
        self.sizes.append(len(outcomes))
        return super().record(outcomes)

    def expose(self, exposures):
        self.begun.set()
        self.go.wait(5)
        super().expose(exposures)


@pytest.fixture
def store() -> Slow:
    return Slow()


@pytest.fixture
async def recorder(store, monkeypatch):
    monkeypatch.setattr("router.extensions.experiments.recorder.RETRY", 0.02)
    made = Recorder(store)
    made.start()
    yield made
    store.down = False
    store.go.set()
    await made.close()


def kept(store: MemoryStore) -> set[str]:
    return set(store.rows["trial", 1].exposures)


async def test_outcomes_see_the_exposures_put_in_before(recorder):
    recorder.expose(exposure(1))
    assert await recorder.record([outcome(1), outcome(2)]) == (Accepted.COUNTED, Accepted.UNKNOWN)
    assert recorder.counts.outcomes == {Accepted.COUNTED: 1, Accepted.UNKNOWN: 1}


async def test_the_same_key_again_is_a_duplicate(recorder):
    recorder.expose(exposure(1))
    assert await recorder.record([outcome(1)]) == (Accepted.COUNTED,)
    assert await recorder.record([outcome(1)]) == (Accepted.DUPLICATE,)


async def test_nothing_to_record(recorder):
    assert await recorder.record([]) == ()


async def test_callers_share_transactions_and_each_gets_its_own(recorder, store):
    recorder.expose(exposure(7))
    await recorder.flush()
    store.begun.clear()
    store.go.clear()
    first = asyncio.create_task(recorder.record([outcome(7)]))
    assert await asyncio.to_thread(store.begun.wait, 5)
    others = [asyncio.create_task(recorder.record([outcome(n), outcome(7, key="other")])) for n in range(50)]
    await asyncio.sleep(0)
    store.go.set()
    assert await first == (Accepted.COUNTED,)
    found = await asyncio.gather(*others)
    assert store.sizes == [1, 100]
    assert {one[0] for n, one in enumerate(found) if n != 7} == {Accepted.UNKNOWN}
    assert found[7] == (Accepted.DUPLICATE, Accepted.DUPLICATE)  # of the first, and of that of the others
    assert [one[1] for one in found] == [Accepted.COUNTED] + [Accepted.DUPLICATE] * 49


async def test_flush_waits_for_all_before(recorder, store):
    for number in range(20):
        recorder.expose(exposure(number))
    await recorder.flush()
    assert len(kept(store)) == 20
    assert recorder.queued == 0


async def test_exposing_never_blocks(recorder, store):
    store.go.clear()
    for number in range(1000):
        recorder.expose(exposure(number))
    assert recorder.queued == 1000
    store.go.set()
    await recorder.flush()
    assert len(kept(store)) == 1000


async def test_a_full_queue_drops_and_counts(store, monkeypatch):
    monkeypatch.setattr("router.extensions.experiments.recorder.LIMIT", 10)
    recorder = Recorder(store)
    recorder.start()
    store.go.clear()
    for number in range(15):
        recorder.expose(exposure(number))
    recorder.observe([outcome(n) for n in range(3)])
    assert recorder.counts.lost == {"exposures": 5, "outcomes": 3}
    with pytest.raises(Overloaded, match="send them again"):
        await recorder.record([outcome(1)])
    store.go.set()
    await recorder.close()
    assert len(kept(store)) == 10


async def test_close_writes_what_is_queued(store):
    recorder = Recorder(store)
    recorder.start()
    for number in range(30):
        recorder.expose(exposure(number))
    recorder.observe([outcome(n) for n in range(30)])
    await recorder.close()
    assert len(kept(store)) == 30
    assert len(store.outcomes) == 30
    recorder.expose(exposure(99))  # too late
    assert recorder.counts.lost == {"exposures": 1}
    with pytest.raises(StoreDown):
        await recorder.record([outcome(1)])


async def test_a_store_that_is_down_turns_clients_away_and_keeps_the_rest(recorder, store):
    store.down = True
    recorder.expose(exposure(1))
    with pytest.raises(StoreDown):
        await recorder.record([outcome(1)])
    assert not recorder.availability.up
    with pytest.raises(StoreDown):
        await recorder.flush()
    recorder.expose(exposure(2))
    store.down = False
    await until(lambda: recorder.availability.up)
    assert await recorder.record([outcome(1), outcome(2)]) == (Accepted.COUNTED,) * 2


async def test_it_recovers_with_nothing_to_write(recorder, store):
    store.down = True
    with pytest.raises(StoreDown):
        await recorder.record([outcome(1)])
    store.down = False
    await until(lambda: recorder.availability.up)
    assert await recorder.record([outcome(1)]) == (Accepted.UNKNOWN,)


async def test_close_waits_no_longer_than_it_is_told_to(store, caplog):
    recorder = Recorder(store)
    recorder.start()
    store.go.clear()
    recorder.expose(exposure(1))
    begin = time.monotonic()
    await recorder.close(0.2)
    assert time.monotonic() - begin >= 0.2
    assert "1 records of experiments were not written" in caplog.text
    store.go.set()


async def test_closing_while_the_store_is_down_counts_what_is_lost(store):
    recorder = Recorder(store)
    recorder.start()
    store.down = True
    for number in range(5):
        recorder.expose(exposure(number))
    await recorder.close()
    assert recorder.counts.lost == {"exposures": 5}


@pytest.mark.slow
async def test_what_the_store_refuses_is_lost_alone(recorder, store, monkeypatch, caplog):
    whole = Slow.record

    def picky(self, outcomes):
        if any(one.value < 0 for one in outcomes):
            raise ValueError("negative")
        return whole(self, outcomes)

    monkeypatch.setattr(Slow, "record", picky)
    store.go.clear()
    recorder.expose(exposure(1))  # holds the writer, so that the next ones are one batch
    assert await asyncio.to_thread(store.begun.wait, 5)
    good = asyncio.create_task(recorder.record([outcome(1)]))
    bad = asyncio.create_task(recorder.record([outcome(2, value=-1.0)]))
    recorder.observe([outcome(3, value=-1.0)])
    await asyncio.sleep(0)
    store.go.set()
    assert await good == (Accepted.COUNTED,)
    with pytest.raises(ValueError, match="negative"):
        await bad
    await recorder.flush()
    assert recorder.counts.lost == {"outcomes": 1}
    assert recorder.availability.up
    assert "the store refused outcomes" in caplog.text


async def until(condition, seconds: float = 30.0) -> None:
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("waited in vain")


def fail(found: Availability, kind: str) -> None:
    with pytest.raises(StoreDown), found.calling(kind):
        raise StoreDown("no route to the database")


def test_down_from_the_first_failure_until_the_next_success():
    found = Availability()
    assert found.up
    fail(found, "read")
    assert found.problem == "no route to the database"
    with found.calling("read"):
        pass
    assert found.up


def test_a_read_that_works_says_nothing_of_writes():
    found = Availability()
    fail(found, "write")
    with found.calling("read"):
        pass
    assert not found.up
    found.forgive("write")
    assert found.up


def test_other_errors_are_not_the_stores():
    found = Availability()
    with pytest.raises(ValueError, match="mine"), found.calling("write"):
        raise ValueError("mine")
    assert found.up


def test_a_call_that_does_not_return_is_down_while_it_lasts(monkeypatch):
    monkeypatch.setattr("router.extensions.experiments.recorder.PATIENCE", 0.02)
    found, go, inside = Availability(), threading.Event(), threading.Event()

    def call() -> None:
        with found.calling("write"):
            inside.set()
            go.wait(5)

    thread = threading.Thread(target=call)
    thread.start()
    inside.wait(5)
    threading.Event().wait(0.05)
    assert "has not answered for" in found.problem
    go.set()
    thread.join()
    assert found.up


def test_changes_are_told_once(caplog):
    found = Availability()
    with caplog.at_level(logging.INFO):
        found.tell()
        fail(found, "read")
        found.tell()
        found.tell()
        found.forgive("read")
        found.tell()
        found.tell()
    assert [r.getMessage() for r in caplog.records] == [
        "experiments are off: no route to the database; requests are served without them",
        "experiments are on again",
    ]
