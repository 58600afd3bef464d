"""What an operator may look at beside what the services tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router.access.audit import RecentAudit
from router.corrections.recorder import Corrections
from router.engine.base import Engine
from router.ports import AdapterRegistry
from router.routing.state import RoutingState
from router.server.health import ServerHealth
from router.server.metrics import ServerMetrics

if TYPE_CHECKING:
    from router.server.app import ServerApp


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """Parts of a server, for its console."""

    engine: Engine
    registry: AdapterRegistry
    metrics: ServerMetrics
    health: ServerHealth
    recent: RecentAudit
    routing: Callable[[], RoutingState]
    ready: asyncio.Event  # requests are let in
    started: float = field(default_factory=time.time)  # unix seconds
    corrections: Corrections | None = None
    no_experiments: str = ""  # why there are none

    @classmethod
    def of(cls, server: ServerApp, recent: RecentAudit) -> ConsoleContext:
        """Of that server; `recent` has what administrators did."""
        absent = server.no_experiments if server.experiments is None else ""
        found = (server.engine, server.registry, server.metrics, server.health, recent, server.router.state)
        return cls(*found, server.ready, corrections=server.corrections, no_experiments=absent)
