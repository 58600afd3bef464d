"""What was acknowledged is kept, whatever happens to the server or its database."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection

import pytest

from router.errors import StoreDown
from router.extensions.experiments import recorder
from router.extensions.experiments.assignment import ArmAssignment
from router.extensions.experiments.model import Accepted, Aggregate, Kind, MetricSpec
from router.extensions.experiments.runtime import LiveExperiments
from router.extensions.experiments.store.store import ExperimentStore
from tests.extensions.experiments import made
from tests.extensions.experiments.store.conftest import empty
from tests.extensions.experiments.store.helpers import experiment, exposed, outcome, row
from tests.extensions.experiments.store.postgres import Server, binaries
from tests.extensions.experiments.test_recorder import until

pytestmark = pytest.mark.slow

SUM = MetricSpec("n", Kind.MEAN, aggregate=Aggregate.SUM)
# A new interpreter for each would take longer than the test, and gRPC's threads here may not be forked.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([__name__])
EACH = 40


def send(url: str, run: int, pipe: Connection) -> None:
    """Record batch after batch, and say which are acknowledged, until killed."""
    store, batch = ExperimentStore(url), 0
    while True:
        names = [f"{run}-{batch}-{i}" for i in range(EACH)]
        store.expose([exposed(f"u{i}", name, at=1) for i, name in enumerate(names)])
        found = store.record([outcome(name, "n", at=2, key=name) for name in names])
        pipe.send((names, set(found) == {Accepted.COUNTED}))
        batch += 1


def killed(url: str, run: int, after: float) -> list[str]:
    """Keys that a process which was killed in the middle had acknowledged."""
    ours, theirs = FORK.Pipe(duplex=False)
    child = FORK.Process(target=send, args=(url, run, theirs))
    child.start()
    theirs.close()
    acknowledged, all_counted = [], True
    try:
        assert ours.poll(30)
        time.sleep(after)
    finally:
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
    try:
        while True:
            names, counted = ours.recv()
            acknowledged += names
            all_counted &= counted
    except EOFError:
        ours.close()
    assert all_counted
    return acknowledged


@pytest.mark.slow
@pytest.mark.parametrize("runs", [3, pytest.param(20, marks=pytest.mark.long)])
def test_nothing_acknowledged_is_lost_or_counted_twice(url, runs):
    store = ExperimentStore(url)
    store.create(experiment("x", SUM))
    store.close()
    acknowledged = []
    for run in range(runs):
        acknowledged += killed(url, run, random.uniform(0, 0.15))
    store = ExperimentStore(url)
    again = [outcome(key, "n", at=2, key=key) for key in acknowledged]
    assert set(store.record(again)) == {Accepted.DUPLICATE}
    units, total = row(store, "n")
    written = store.data("x", 1).responses["a"]
    assert units == EACH
    assert len(acknowledged) <= total <= written <= len(acknowledged) + runs * EACH
    assert len(acknowledged) >= runs * EACH
    store.close()


def write(url: str, me: int, keys: int) -> None:
    """Half of the keys are those of the other writer too."""
    store = ExperimentStore(url)
    names = [f"{me if i % 2 else 'both'}-{i}" for i in range(keys)]
    for i in range(0, keys, 25):
        part = names[i : i + 25]
        store.expose([exposed(f"u{hash(name) % 7}", name, at=1) for name in part])
        store.record([outcome(name, "n", at=2, key=name) for name in part])


def test_two_servers_at_once(url):
    """They open an empty database at the same time, too."""
    writers = [FORK.Process(target=write, args=(url, me, 400)) for me in range(2)]
    store = ExperimentStore(url)
    store.create(experiment("x", SUM))
    store.close()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = ExperimentStore(url)
    assert row(store, "n") == (7, 600.0)
    assert store.data("x", 1).responses == {"a": 600}
    store.close()


def open_it(url: str) -> None:
    ExperimentStore(url).salt("holdout")


def test_two_servers_open_an_empty_database_at_once(url):
    openers = [FORK.Process(target=open_it, args=(url,)) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
    assert [opener.exitcode for opener in openers] == [0] * 4


def test_a_server_that_comes_back(server):
    where = empty(server)
    server.stop()
    try:
        store = ExperimentStore(where)  # starts without its database
        began = time.monotonic()
        with pytest.raises(StoreDown, match="cannot be reached") as caught:
            store.list()
        assert time.monotonic() - began < 5
        assert caught.value.retry_after > 0
    finally:
        server.start()
    store.create(experiment("x", SUM))
    server.stop()
    server.start()
    store.expose([exposed("u", "r")])  # at once: the broken connection is noticed first
    server.stop()
    try:
        with pytest.raises(StoreDown):
            store.record([outcome("r", "n")])
        with pytest.raises(StoreDown):
            store.data("x", 1)
    finally:
        server.start()
    assert store.record([outcome("r", "n")]) == (Accepted.COUNTED,)
    assert row(store, "n") == (1, 1.0)
    store.close()


@pytest.fixture
def postgres():
    where = binaries()
    if where is None:
        pytest.skip("PostgreSQL is not installed")
    server = Server(where)
    yield server
    server.close()


async def test_postgres_goes_and_comes_back(postgres, monkeypatch):
    monkeypatch.setattr(recorder, "RETRY", 0.1)
    store = ExperimentStore(postgres.url())
    store.create(made.experiment())
    live = LiveExperiments(store, poll_seconds=0.1)
    await live.start()
    live.recorder.expose(made.exposure(1))
    await live.recorder.flush()

    await asyncio.to_thread(postgres.stop)
    live.recorder.expose(made.exposure(2))
    with pytest.raises(StoreDown):
        await live.recorder.record([made.outcome(1)])
    assert live.assign(made.request(), made.decision()) is None
    assert live.counts.skipped == {"trial": 1}

    await asyncio.to_thread(postgres.start)
    await until(lambda: live.availability.up and live.recorder.queued == 0, 20)
    assert isinstance(live.assign(made.request(), made.decision()), ArmAssignment)
    assert await live.recorder.record([made.outcome(1), made.outcome(2)]) == (Accepted.COUNTED,) * 2
    assert live.counts.lost == {}
    await live.close()
