"""Stubs on a channel to the running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.server.app import ServerApp
from router.v1 import adapters_pb2_grpc, experiments_pb2_grpc, inference_pb2_grpc
from tests.experiments.memory_store import MemoryStore
from tests.server.experiments import experimenting
from tests.server.helpers import Connect, Start


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
