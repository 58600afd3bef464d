"""A real PostgreSQL that goes away and comes back under a server that runs."""

from __future__ import annotations

import asyncio

import pytest

from router.errors import StoreDown
from router.experiments import recorder
from router.experiments.assignment import ArmAssignment
from router.experiments.model import Accepted
from router.experiments.runtime import LiveExperiments
from router.experiments.store.store import ExperimentStore
from tests.experiments.live.made import decision, experiment, exposure, outcome, request
from tests.experiments.live.test_recorder import until
from tests.experiments.store.postgres import Server, binaries

pytestmark = pytest.mark.slow


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
    store.create(experiment())
    live = LiveExperiments(store, poll_seconds=0.1)
    await live.start()
    live.recorder.expose(exposure(1))
    await live.recorder.flush()

    await asyncio.to_thread(postgres.stop)
    live.recorder.expose(exposure(2))
    with pytest.raises(StoreDown):
        await live.recorder.record([outcome(1)])
    assert live.assign(request(), decision()) is None
    assert live.counts.skipped == {"trial": 1}

    await asyncio.to_thread(postgres.start)
    await until(lambda: live.availability.up and live.recorder.queued == 0, 20)
    assert isinstance(live.assign(request(), decision()), ArmAssignment)
    assert await live.recorder.record([outcome(1), outcome(2)]) == (Accepted.COUNTED,) * 2
    assert live.counts.lost == {}
    await live.close()
