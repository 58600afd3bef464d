"""A collector, and servers that send to it at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from router.server.app import ServerApp
from tests.extensions.otel.collector import Collector
from tests.server.helpers import Start

StartTraced = Callable[..., Awaitable[ServerApp]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for a batch to be full."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")


@pytest.fixture
def traced(collector: Collector, start_server: Start, fakes: SimpleNamespace, soon: None) -> StartTraced:
    async def start(**settings: Any) -> ServerApp:
        said = {"otel.endpoint": collector.url, "metrics_listen": "127.0.0.1:0", **settings}
        return await start_server(**vars(fakes), **said)

    return start
