"""How many corrections were kept, for a scraper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from router.corrections.recorder import Corrections


class CorrectionsCollector(Collector):
    """How many were kept, for a scraper."""

    def __init__(self, corrections: Corrections) -> None:
        self._corrections = corrections

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        text = "Corrections by what was kept, and whether another should have answered."
        found = CounterMetricFamily("lora_router_corrections", text, labels=("kept", "wrong"))
        for (kept, wrong), count in tuple(self._corrections.kept.items()):
            found.add_metric((kept, "yes" if wrong else "no"), count)
        yield found
