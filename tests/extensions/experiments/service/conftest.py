"""Servers with experiments, in a store of dicts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from router.extensions.experiments import recorder
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.service.lab import experimenting
from tests.extensions.experiments.service.trials import live_on
from tests.fakes import adapter
from tests.server.helpers import Connect, Start


@pytest.fixture
async def lab(
    fakes: SimpleNamespace, start_server: Start, connect: Connect
) -> AsyncIterator[SimpleNamespace]:
    """Stubs to a server with experiments in a store of dicts."""
    async with experimenting(MemoryStore(), fakes, start_server, connect) as stubs:
        yield stubs


@pytest.fixture
def store() -> MemoryStore:
    """An empty store in memory."""
    return MemoryStore()


@pytest.fixture
async def run(start_server, connect, fakes, store, monkeypatch):
    """`await run(experiment, ...)`: a server with them, its stubs and what stands behind it."""
    monkeypatch.setattr(recorder, "RETRY", 0.02)
    monkeypatch.setattr(recorder, "LINGER", 0.02)
    started = []

    async def begin(*experiments, http_listen="", **options) -> SimpleNamespace:
        fakes.registry.put(adapter("medical", "1.1.0"))
        for one in experiments:
            store.create(one)
        live = await live_on(store, base_digest=lambda: "base", router_digest=lambda: "router", **options)
        started.append(live)
        app = await start_server(**vars(fakes), experiments=live, http_listen=http_listen)
        return SimpleNamespace(app=app, live=live, **vars(connect(app)), **vars(fakes))

    yield begin
    store.down = False
    for live in started:
        await live.close()
