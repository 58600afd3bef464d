"""An OTLP collector in this process: keeps what it gets, in plain values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens at `url` until `stop`. `headers` are those of the latest export."""

    def __init__(self) -> None:
        self.headers: dict[str, Any] = {}
        self.resource: dict[str, Any] = {}
        self.spans: list[SimpleNamespace] = []
        self.metrics: dict[str, Any] = {}
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Readings(self), self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any) -> Any:
        self.headers = dict(context.invocation_metadata())
        for one in request.resource_spans:
            self.resource = values(one.resource.attributes)
            self.spans += [plain(span) for scope in one.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    async def tree(self, name: str) -> tuple[SimpleNamespace, dict[str, SimpleNamespace]]:
        """The one server span of that name, and its children by theirs, once they are here."""
        await until(lambda: any(span.name == name for span in self.spans))
        (root,) = [span for span in self.spans if span.name == name and span.kind == "SERVER"]
        children = {span.name: span for span in self.spans if span.parent == root.id}
        assert {span.trace for span in children.values()} <= {root.trace}
        return root, children


class Readings(metrics_service_pb2_grpc.MetricsServiceServicer):
    """The collector's other service."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: Any) -> Any:
        for one in request.resource_metrics:
            for scope in one.scope_metrics:
                self._collector.metrics = {metric.name: metric for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()


def plain(span: Any) -> SimpleNamespace:
    return SimpleNamespace(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        state=span.trace_state,
        kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=values(span.attributes),
        events=[(event.name, values(event.attributes)) for event in span.events],
        status=span.status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        problem=span.status.message,
    )


def values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {one.key: value(one.value) for one in attributes}


def value(told: Any) -> Any:
    kind = told.WhichOneof("value")
    if kind == "array_value":
        return [value(one) for one in told.array_value.values]
    return getattr(told, kind)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what a thread does."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "waited in vain"
        await asyncio.sleep(0.01)
