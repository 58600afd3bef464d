"""Stubs on a channel to the running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.server.app import ServerApp
from router.v1 import adapters_pb2_grpc, inference_pb2_grpc
from tests.server.helpers import Connect


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`connect(app)`: a channel of its own with `inference` and `adapters` stubs."""
    channels: list[grpc.aio.Channel] = []

    def open_channel(app: ServerApp, *options: tuple[str, Any]) -> SimpleNamespace:
        local = ("grpc.use_local_subchannel_pool", 1)
        channel = grpc.aio.insecure_channel(app.address, options=(local, *options))
        channels.append(channel)
        return SimpleNamespace(
            channel=channel,
            inference=inference_pb2_grpc.InferenceServiceStub(channel),
            adapters=adapters_pb2_grpc.AdapterServiceStub(channel),
        )

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture
async def stubs(server: ServerApp, connect: Connect) -> SimpleNamespace:
    """Stubs to `server`."""
    return connect(server)
