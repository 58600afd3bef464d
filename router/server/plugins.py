"""Metrics of plugins: how their hooks do, and those that they register themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from router.plugins import Hooks

log = logging.getLogger(__name__)


class PluginsCollector(Collector):
    """A plugin whose own metrics cannot be read is left out; the fault is shown as one of its hooks."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def describe(self) -> list[Metric]:
        """Nothing: which metrics there are depends on the plugins."""
        return []

    def collect(self) -> Iterator[Metric]:
        """As of now."""
        faults = CounterMetricFamily(
            "lora_router_plugin_faults", "Calls of a plugin's hook that failed.", labels=("plugin", "hook")
        )
        dropped = CounterMetricFamily(
            "lora_router_plugin_records_dropped",
            "Records that a plugin did not get, since too many waited.",
            labels=("plugin",),
        )
        seen: set[str] = set()
        for running in self._hooks.running():
            if running.loaded.metrics is not None and not running.failed:
                try:
                    own = [one for one in running.loaded.metrics.collect() if one.name not in seen]
                except Exception as error:
                    running.fault("register_metrics", error)
                else:
                    seen.update(one.name for one in own)
                    yield from own
            for hook, fault in tuple(running.faults.items()):
                faults.add_metric((running.plugin.name, hook), fault.count)
            if running.observer is not None:
                dropped.add_metric((running.plugin.name,), running.observer.dropped)
        yield from (faults, dropped)
