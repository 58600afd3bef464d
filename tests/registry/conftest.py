"""A registry over a temporary folder with the bookkeeping engine, fast enough for tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from router.registry.registry import Registry, RegistryOptions
from tests.registry.life import StubEngine

FAST = RegistryOptions(
    poll_seconds=0.1,
    settle_seconds=0.04,
    grace_seconds=0.2,
    room_seconds=0.3,
    host_memory_bytes=1 << 20,
    gate="off",
)
StartRegistry = Callable[..., Awaitable[Registry]]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "adapters"
    folder.mkdir()
    return folder


@pytest.fixture
async def engine():
    return StubEngine()


@pytest.fixture
async def start_registry(engine, root, tmp_path):
    """Start registries over `root`; options and `dirs` may be given."""
    async with AsyncExitStack() as stack:

        async def start(settle: float = 10.0, **given: Any) -> Registry:
            dirs = given.pop("dirs", [root])
            options = replace(FAST, state_dir=tmp_path / "state", **given)
            registry = Registry(engine, dirs, options)
            engine.in_use = lambda digest: any(r.digest == digest and r.leases for r in registry._residency)
            stack.push_async_callback(registry.close)
            await registry.start()
            await registry.settled(settle)
            return registry

        yield start
