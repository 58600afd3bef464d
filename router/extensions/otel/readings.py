"""The page of metrics as OpenTelemetry's: the same numbers, in the conventions' names where there are any.

Other names follow the rule by which Prometheus makes its own of them, the other way round, so that a
dashboard shows the same whichever way they came: `lora_router_queue_seconds` is `lora_router.queue` in s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtlpMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric, Sample

from router.extensions.otel.spans import PROVIDER

NANOSECONDS = 1_000_000_000
CUMULATIVE = AggregationTemporality.CUMULATIVE
OURS = "lora_router_"
UNITS = {"_seconds": "s", "_bytes": "By", "_ratio": "1"}
GEN_AI = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": PROVIDER}


@dataclass(frozen=True, slots=True)
class NamedMetric:
    """A metric under another name. `labels` that have another name, too; `always` stands beside them."""

    name: str
    unit: str = "s"
    labels: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, str] = field(default_factory=dict)
    additive: bool = False  # a gauge that the conventions have as a sum that goes up and down


CONVENTIONS = {
    "grpc_server_call_duration_seconds": NamedMetric(
        "rpc.server.call.duration",
        labels={"grpc_method": "rpc.method", "grpc_status": "rpc.response.status_code"},
        always={"rpc.system.name": "grpc"},
    ),
    "http_server_request_duration_seconds": NamedMetric(
        "http.server.request.duration",
        labels={
            "http_request_method": "http.request.method",
            "http_route": "http.route",
            "http_response_status_code": "http.response.status_code",
        },
    ),
    "lora_router_request_seconds": NamedMetric("gen_ai.server.request.duration", always=GEN_AI),
    "lora_router_time_to_first_token_seconds": NamedMetric(
        "gen_ai.server.time_to_first_token", always=GEN_AI
    ),
    "lora_router_time_per_output_token_seconds": NamedMetric(
        "gen_ai.server.time_per_output_token", always=GEN_AI
    ),
    "process_cpu_seconds": NamedMetric("process.cpu.time"),
    "process_resident_memory_bytes": NamedMetric("process.memory.usage", "By", additive=True),
    "process_virtual_memory_bytes": NamedMetric("process.memory.virtual", "By", additive=True),
    "process_open_fds": NamedMetric("process.unix.file_descriptor.count", "{file_descriptor}", additive=True),
}


class RegistryReader:
    """Reads a registry for OTLP."""

    def __init__(self, registry: CollectorRegistry, resource: Resource, scope: InstrumentationScope) -> None:
        self._registry, self._resource, self._scope = registry, resource, scope
        self._start = time.time_ns()

    def read(self) -> MetricsData:
        """Everything as it is now."""
        now = time.time_ns()
        metrics = [
            metric
            for family in self._registry.collect()
            if family.name.startswith(OURS) or family.name in CONVENTIONS
            for metric in self._converted(family, now)
        ]
        scope = ScopeMetrics(self._scope, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], self._resource.schema_url)])

    def _converted(self, family: Metric, now: int) -> Iterator[OtlpMetric]:
        named = CONVENTIONS.get(family.name) or by_rule(family.name)
        data: Sum | Gauge | Histogram
        if family.type == "histogram":
            data = Histogram(list(self._histogram(family, named, now)), CUMULATIVE)
        else:
            points = list(self._numbers(family, named, now))
            counter = family.type == "counter"
            summed = counter or named.additive
            data = Sum(points, CUMULATIVE, is_monotonic=counter) if summed else Gauge(points)
        if data.data_points:
            yield OtlpMetric(named.name, family.documentation, named.unit, data)

    def _numbers(self, family: Metric, named: NamedMetric, now: int) -> Iterator[NumberDataPoint]:
        for sample in family.samples:
            if math.isfinite(sample.value):
                value = float(sample.value)  # some are of other kinds: a bool, an int
                yield NumberDataPoint(labels_of(sample, named), self._start, now, value)

    def _histogram(self, family: Metric, named: NamedMetric, now: int) -> Iterator[HistogramDataPoint]:
        for series in series_of(family.samples):
            buckets = [sample for sample in series if sample.name.endswith("_bucket")]
            total = next(sample.value for sample in series if sample.name.endswith("_sum"))
            counts = [0, *(int(sample.value) for sample in buckets)]
            yield HistogramDataPoint(
                labels_of(buckets[0], named),
                self._start,
                now,
                counts[-1],
                float(total),
                [after - before for before, after in pairwise(counts)],
                [float(sample.labels["le"]) for sample in buckets[:-1]],
                None,  # type: ignore[arg-type]  # least and most are not kept
                None,  # type: ignore[arg-type]
            )


def by_rule(name: str) -> NamedMetric:
    """What a metric without a name in the conventions is called."""
    rest = name.removeprefix(OURS)
    for suffix, unit in UNITS.items():
        if rest.endswith(suffix):
            return NamedMetric(f"lora_router.{rest.removesuffix(suffix)}", unit)
    return NamedMetric(f"lora_router.{rest}", "1")


def labels_of(sample: Sample, named: NamedMetric) -> dict[str, str]:
    """The attributes of a point."""
    labels = {key: value for key, value in sample.labels.items() if key != "le"}
    found = dict(named.always)
    if named.always is GEN_AI and (code := labels.pop("code", "OK")) != "OK":
        found["error.type"] = code
    for key, value in labels.items():
        if key != "http_route" or value:  # what no route serves has none
            found[named.labels.get(key, key)] = value.removeprefix("/") if key == "grpc_method" else value
    return found


def series_of(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """The samples of a histogram, by what they have in common."""
    found: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in samples:
        key = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        found.setdefault(key, []).append(sample)
    yield from found.values()
