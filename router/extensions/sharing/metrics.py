"""What a server shares with other edges, for a scraper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Shared(Protocol):
    """Where edges meet."""

    problem: str
    edges: int


class EdgesCollector(Collector):
    """Whether the others can be reached, and how many there are with this one."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        """As of the last look."""
        up = not self._shared.problem
        yield GaugeMetricFamily(
            "lora_router_shared_state_up", "1 while the database of what edges share answers.", float(up)
        )
        yield GaugeMetricFamily(
            "lora_router_edges",
            "Edges that share their state, as seen last, this one too.",
            self._shared.edges,
        )
