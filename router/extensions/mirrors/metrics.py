"""How far mirrors of adapter stores are behind, for a scraper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class MirrorState:
    """One store: seconds since it was last followed without a fault, folders here, folders refused."""

    store: str
    behind_seconds: float
    folders: int
    refused: int


class MirrorsCollector(Collector):
    """A line for each store among the adapters folders."""

    def __init__(self, states: Callable[[], Iterable[MirrorState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """As of now."""
        behind = GaugeMetricFamily(
            "lora_router_mirror_behind_seconds",
            "Seconds for which a store of adapters has not been followed; 0 while it is.",
            labels=("store",),
        )
        folders = GaugeMetricFamily(
            "lora_router_mirror_adapters",
            "Adapter folders that were mirrored from a store.",
            labels=("store",),
        )
        refused = GaugeMetricFamily(
            "lora_router_mirror_refused",
            "Adapter folders of a store that are too large or not to be trusted.",
            labels=("store",),
        )
        for state in self._states():
            behind.add_metric((state.store,), state.behind_seconds)
            folders.add_metric((state.store,), state.folders)
            refused.add_metric((state.store,), state.refused)
        yield from (behind, folders, refused)
