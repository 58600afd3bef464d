"""Spans on their way to the collector: what is lost is counted, and told once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from router.extensions.otel.otlp import CountedExporter, Delivery
from router.server.metrics import ServerMetrics


class Scripted(SpanExporter):
    """Raises, or says what became of each batch."""

    def __init__(self, outcomes: Sequence[bool | Exception]) -> None:
        self._outcomes: Iterator[bool | Exception] = iter(outcomes)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return SpanExportResult.SUCCESS if outcome else SpanExportResult.FAILURE


def made(outcomes: Sequence[bool | Exception]) -> tuple[CountedExporter, ServerMetrics]:
    metrics = ServerMetrics()
    delivery = Delivery("traces", metrics.telemetry_sent, metrics.telemetry_lost)
    return CountedExporter(Scripted(outcomes), delivery), metrics


def counted(metrics: ServerMetrics) -> tuple[float | None, ...]:
    value = metrics.registry.get_sample_value
    return tuple(
        value(f"lora_router_telemetry_{what}_total", {"signal": "traces"}) for what in ("sent", "lost")
    )


FOUR = [ReadableSpan("route") for _ in range(4)]


def test_no_more_wait_than_the_queue_holds() -> None:
    exporter, _ = made([True])
    assert [exporter.take(4, 8) for _ in range(3)] == [True, True, False]
    exporter.export(FOUR)
    assert exporter.waiting == 4
    assert exporter.take(4, 8)


def test_what_is_lost_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    exporter, metrics = made([RuntimeError("no"), True, False, False, True])
    caplog.set_level("INFO", "router.extensions.otel")
    for _ in range(5):
        exporter.export(FOUR)
    assert counted(metrics) == (8, 12)
    told = [record.getMessage().split(";")[0] for record in caplog.records]
    down, up = "the OTLP collector does not take what is sent", "traces arrive at the collector again"
    assert told == ["spans could not be sent", down, up, down, up]
