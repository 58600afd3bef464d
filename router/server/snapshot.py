"""Metrics that are read off the engine and the registry at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.engine.base import EngineStatus
from router.types import AdapterInfo

Labels = Callable[[str, str], tuple[str, str]]


class Snapshot(Collector):
    """`take` runs on the event loop, where engine and registry may be asked; `collect` anywhere."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._status = EngineStatus()
        self._resident: tuple[tuple[str, str, str], ...] = ()

    def take(self, status: EngineStatus, adapters: Iterable[AdapterInfo]) -> None:
        """Remember the present state."""
        tiers = {"device": set(status.device_adapters), "host": set(status.host_adapters)}
        self._status = status
        self._resident = tuple(
            sorted(
                {
                    (*self._labels(info.ref.name, info.ref.version), tier)
                    for info in adapters
                    for tier, digests in tiers.items()
                    if info.digest in digests
                }
            )
        )

    def collect(self) -> Iterator[Metric]:
        """What was taken last."""
        status = self._status
        used = 1 - status.cache_blocks_free / status.cache_blocks if status.cache_blocks else 0.0
        gauges = {
            "lora_router_requests_running": ("Requests in the batch.", status.running),
            "lora_router_requests_waiting": ("Requests in the engine's queue.", status.waiting),
            "lora_router_kv_cache_usage_ratio": ("Part of the KV cache in use.", used),
            "lora_router_adapter_host_bytes": ("Adapter weights in host memory.", status.host_bytes),
            "lora_router_adapter_slots": ("Adapter slots on the device.", status.slots),
        }
        counters = {
            "lora_router_steps": ("Steps made.", status.steps),
            "lora_router_prefix_cache_hit_tokens": ("Prompt tokens reused.", status.prefix_hit_tokens),
            "lora_router_prefix_cache_query_tokens": ("Prompt tokens looked up.", status.prefix_query_tokens),
        }
        yield from (GaugeMetricFamily(name, text, value) for name, (text, value) in gauges.items())
        yield from (CounterMetricFamily(name, text, value) for name, (text, value) in counters.items())
        resident = GaugeMetricFamily(
            "lora_router_adapter_resident", "1 for each tier.", labels=("adapter", "version", "tier")
        )
        for labels in self._resident:
            resident.add_metric(labels, 1)
        yield resident
