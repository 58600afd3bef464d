"""What a server shares with other edges."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.shared.documents import SharedTable
from router.shared.state import SharedState

if TYPE_CHECKING:
    from router.server.app import ServerApp
    from router.shared.documents import Beat


def shared_state(server: ServerApp) -> SharedState:
    """What a server shares, to be started before its registry: chosen defaults, and what clients have used.

    Raises ConfigError for a database that cannot be one.
    """
    state, quotas = SharedState(SharedTable(server.settings.database, edge_name())), server.admission.quotas

    def others(beats: Sequence[Beat]) -> None:
        quotas.used_elsewhere({beat.edge: beat.used for beat in beats})

    state.used, state.others = quotas.used, others
    server.registry.share(state)
    server.metrics.registry.register(EdgesCollector(state))
    return state


class EdgesCollector(Collector):
    """Whether the others can be reached, and how many there are with this one, for a scraper."""

    def __init__(self, state: SharedState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """As of the last look."""
        yield GaugeMetricFamily(
            "lora_router_shared_state_up",
            "1 while the database of what edges share answers.",
            float(not self._state.problem),
        )
        yield GaugeMetricFamily(
            "lora_router_edges",
            "Edges that share their state, as seen last, this one too.",
            self._state.edges,
        )


def edge_name() -> str:
    """Of this process, for people and for others that count: no other one ever has it."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
