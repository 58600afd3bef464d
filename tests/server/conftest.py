"""Stubs on a channel to the running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.experiments.live import writer
from router.server.app import ServerApp
from router.v1 import adapters_pb2_grpc, experiments_pb2_grpc, inference_pb2_grpc
from tests.experiments.memory_store import MemoryStore
from tests.fakes import adapter
from tests.server.experiments import experimenting
from tests.server.helpers import Connect, Start
from tests.server.trials import live_on


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`connect(app)`: a channel of its own with `inference`, `adapters` and `experiments` stubs."""
    channels: list[grpc.aio.Channel] = []

    def open_channel(app: ServerApp, *options: tuple[str, Any]) -> SimpleNamespace:
        local = ("grpc.use_local_subchannel_pool", 1)
        channel = grpc.aio.insecure_channel(app.address, options=(local, *options))
        channels.append(channel)
        return SimpleNamespace(
            channel=channel,
            inference=inference_pb2_grpc.InferenceServiceStub(channel),
            adapters=adapters_pb2_grpc.AdapterServiceStub(channel),
            experiments=experiments_pb2_grpc.ExperimentServiceStub(channel),
        )

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture
async def stubs(server: ServerApp, connect: Connect) -> SimpleNamespace:
    """Stubs to `server`."""
    return connect(server)


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
    monkeypatch.setattr(writer, "RETRY", 0.02)
    monkeypatch.setattr(writer, "LINGER", 0.02)
    started = []

    async def begin(*experiments, **options) -> SimpleNamespace:
        fakes.registry.put(adapter("medical", "1.1.0"))
        for one in experiments:
            store.create(one)
        live = await live_on(store, base_digest=lambda: "base", router_digest=lambda _: "router", **options)
        started.append(live)
        app = await start_server(**vars(fakes), experiments=live)
        return SimpleNamespace(app=app, live=live, **vars(connect(app)), **vars(fakes))

    yield begin
    store.down = False
    for live in started:
        await live.close()
