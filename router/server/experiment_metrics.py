"""Metrics of experiments, read off their counts at every scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.experiments.live.runtime import Experiments

ARM = ("experiment", "arm")


class ExperimentMetrics(Collector):
    """Labels are names that operators gave, so there are few."""

    def __init__(self, experiments: Experiments) -> None:
        self._experiments = experiments

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        live, counts = self._experiments, self._experiments.counts
        one = ("experiment",)
        yield _counter("exposures", "Answers that an arm began.", ARM, counts.exposures)
        yield _counter("degraded", "Of these, answered by something else.", ARM, counts.degraded)
        yield _counter("unit_missing", "Requests without a unit.", one, counts.unit_missing)
        yield _counter("skipped", "Requests served without, the store was down.", one, counts.skipped)
        shadows = "Shadow answers and what came of them."
        yield _counter("shadows", shadows, (*ARM, "result"), counts.shadows)
        yield _counter("acts", "What rules did by themselves.", ("experiment", "act"), counts.acts)
        yield _counter("outcomes", "Outcomes of clients.", ("status",), counts.outcomes)
        yield _counter("lost", "Records that were not kept.", ("kind",), counts.lost)
        running = len(live.assigner.snapshot.all())
        yield GaugeMetricFamily("lora_router_experiments_running", "Experiments that assign.", running)
        yield GaugeMetricFamily("lora_router_experiment_queue", "Records to write.", live.recorder.queued)
        yield GaugeMetricFamily("lora_router_experiment_store_up", "1 if it answers.", live.availability.up)


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"lora_router_experiment_{name}", text, labels=labels)
    for key, value in tuple(values.items()):
        family.add_metric([str(k) for k in (key if isinstance(key, tuple) else (key,))], value)
    return family
