"""How routing does against what was expected of it, for a scraper."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.routing.drift import Drift


class DriftCollector(Collector):
    """Shares of routing's latest decisions. They name adapters, so they are here alone, for the operator."""

    def __init__(self, drift: Drift) -> None:
        self._drift = drift

    def collect(self) -> Iterator[Metric]:
        """As of the last look."""
        seen = self._drift.seen
        looked = "Latest decisions of classifiers that the shares are of."
        yield GaugeMetricFamily("lora_router_routing_decisions", looked, seen.decisions)
        shares = GaugeMetricFamily(
            "lora_router_routing_share",
            "Part of the latest decisions, by what became of them.",
            labels=("what",),
        )
        for what, share in seen.shares.items():
            shares.add_metric((what,), share)
        expected = GaugeMetricFamily(
            "lora_router_routing_share_expected",
            "What the part was expected to be.",
            labels=("what", "against"),
        )
        alarms = GaugeMetricFamily(
            "lora_router_routing_drift", "1 while the part has moved from there.", labels=("what", "against")
        )
        for one in seen.compared:
            expected.add_metric((one.what, one.against), one.expected)
            alarms.add_metric((one.what, one.against), float(one.alarm))
        yield from (shares, expected, alarms)
