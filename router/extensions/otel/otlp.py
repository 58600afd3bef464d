"""Sends to an OTLP collector by gRPC: spans of calls as they end, metrics every minute.

Spans wait in the bounded queue of a BatchSpanProcessor. What does not arrive is counted, and told once.

What the standard variables say holds: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and
OTEL_TRACES_SAMPLER_ARG, OTEL_EXPORTER_OTLP_* (headers, certificates, timeout, compression), OTEL_BSP_*,
OTEL_METRIC_EXPORT_INTERVAL, OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER (`none`), OTEL_SDK_DISABLED.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from uuid import uuid4

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    SpanContext,
    SpanKind,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter

from router import __version__
from router.classifiers.isolation import await_in_thread
from router.errors import ConfigError
from router.extensions.otel.readings import RegistryReader
from router.extensions.otel.spans import Maker, SpanOrigin
from router.server.call import Call, Metadata, Trace
from router.server.metrics import ServerMetrics

log = logging.getLogger(__name__)
LIBRARY = logging.getLogger("opentelemetry.exporter")  # what it logs of each try, we tell once
OF_CALLERS = logging.getLogger("opentelemetry.trace")  # logs what is wrong with headers, in their words


class LastWords(logging.Handler):
    """Keeps what the exporter's library logged last."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.text = record.getMessage()


@cache
def last_words() -> LastWords:
    """From now on the library, which logs every try, logs to this handler alone."""
    words = LastWords(logging.WARNING)
    OF_CALLERS.setLevel(logging.CRITICAL)
    LIBRARY.propagate = False
    LIBRARY.addHandler(words)
    return words


class Delivery:
    """Delivery of one kind of signal: counted always, logged when it stops and when it goes on."""

    def __init__(self, signal: str, sent: Counter, lost: Counter) -> None:
        self._signal, self._words = signal, last_words()
        self._sent, self._lost = sent.labels(signal), lost.labels(signal)
        self.down = False

    def done(self, count: int, arrived: bool) -> None:
        """So many were sent, and arrived or did not."""
        if arrived:
            self._sent.inc(count)
        else:
            self._lost.inc(count)
        if arrived == self.down:
            self._tell(arrived)
        self.down = not arrived

    def lose(self, count: int) -> None:
        """So many were not even sent."""
        self._lost.inc(count)

    def _tell(self, arrived: bool) -> None:
        if arrived:
            log.info("%s arrive at the collector again", self._signal)
        else:
            fields = {"signal": self._signal, "problem": self._words.text}
            text = "the OTLP collector does not take what is sent; requests are served as before"
            log.warning(text, extra={"fields": fields})


class CountedExporter(SpanExporter):
    """Exports for a BatchSpanProcessor, and counts. `waiting`: spans that are in its queue."""

    def __init__(self, exporter: SpanExporter, delivery: Delivery) -> None:
        self._exporter, self._delivery = exporter, delivery
        self._lock, self.waiting = threading.Lock(), 0

    def take(self, count: int, most: int) -> bool:
        """Whether the queue has room for so many more, which count as waiting then."""
        with self._lock:
            fits = self.waiting + count <= most
            self.waiting += count if fits else 0
        return fits

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """In the processor's thread."""
        with self._lock:
            self.waiting -= len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception:
            log.exception("spans could not be sent; they are lost")
            result = SpanExportResult.FAILURE
        self._delivery.done(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()


ENV = "env"  # the setting that leaves it to OTEL_EXPORTER_OTLP_ENDPOINT
SCOPE = InstrumentationScope(__version__)
CARRIED, MOST_CARRIED = ("traceparent", "tracestate"), 512  # characters
_PROPAGATOR = TraceContextTextMapPropagator()


class Telemetry:
    """Traces (`Tracing`), and metrics from `start` to `close`. What does not arrive is counted, and holds up
    nothing."""

    @classmethod
    def of(cls, endpoint: str, metrics: ServerMetrics, look: Callable[[], None]) -> Telemetry | None:
        """Raises ConfigError for what cannot be; None where OTEL_SDK_DISABLED is true."""
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        check(endpoint)
        try:
            return cls(None if endpoint == ENV else endpoint, metrics, look)
        except ConfigError:
            raise
        except Exception as error:  # the library's, about a variable
            raise ConfigError(f"otel.endpoint: {error}; look at OTEL_* in the environment") from error

    def __init__(self, endpoint: str | None, metrics: ServerMetrics, look: Callable[[], None]) -> None:
        self.endpoint = endpoint or ENV
        resource, self._look = resource_of(), look
        self._following: asyncio.Task[None] | None = None
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._sampler, self._ids = provider.sampler, provider.id_generator
        self._every = milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000)
        self._most = int(number("OTEL_BSP_MAX_QUEUE_SIZE", 2048))
        self._spans = OTLPSpanExporter(endpoint) if wanted("OTEL_TRACES_EXPORTER") else None
        self._metrics = OTLPMetricExporter(endpoint) if wanted("OTEL_METRICS_EXPORTER") else None
        self._reader = RegistryReader(metrics.registry, resource, SCOPE)
        self._maker = Maker(resource, SCOPE, self._ids)
        counters = (metrics.telemetry_sent, metrics.telemetry_lost)
        self._readings, self._traces = Delivery("metrics", *counters), Delivery("traces", *counters)
        self._processor: BatchSpanProcessor | None = None
        if self._spans is not None:
            self._counted = CountedExporter(self._spans, self._traces)
            self._processor = BatchSpanProcessor(self._counted, self._most)

    def begin(self, metadata: Metadata) -> Trace | None:
        """As `Tracing`: the sampler decides, by the caller's `traceparent` where it has one."""
        if self._spans is None:
            return None
        context = Context()
        if carried := carried_by(metadata):
            context = _PROPAGATOR.extract(carried, context)
        caller = get_current_span(context).get_span_context()
        parent = caller if caller.is_valid else None
        trace_id = parent.trace_id if parent is not None else self._ids.generate_trace_id()
        sampled = self._sampler.should_sample(context, trace_id, "call", SpanKind.SERVER)
        if sampled.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        flags = TraceFlags(TraceFlags.SAMPLED)
        own = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, sampled.trace_state)
        return Trace(format_trace_id(trace_id), format_span_id(own.span_id), SpanOrigin(own, parent))

    def ended(self, call: Call, code: str, reason: str) -> None:
        """As `Tracing`."""
        if call.trace is None or self._processor is None:
            return
        try:
            spans = self._maker.spans(call, call.trace.origin, code, reason)
        except Exception:
            log.exception("the trace of a call could not be made; it is lost")
            self._traces.lose(1)
            return
        if not self._counted.take(len(spans), self._most):
            self._traces.lose(len(spans))
            return
        for span in spans:
            self._processor.on_end(span)

    def start(self) -> None:
        """Send metrics in the background until `close`."""
        self._following = asyncio.get_running_loop().create_task(self.follow())

    async def follow(self) -> None:
        """Send the metrics, again and again."""
        while self._metrics is not None:
            await asyncio.sleep(self._every)
            await self._send_metrics()

    async def close(self, seconds: float) -> None:
        """Send what is left, in so many seconds; a collector that was not there is not waited for."""
        if self._following is not None:
            self._following.cancel()
        self._end(only_down=True)
        with suppress(TimeoutError):  # what was lost was counted
            async with asyncio.timeout(seconds):
                await asyncio.gather(self._send_metrics(), self._send_traces())
        self._end()
        if self._processor is not None:
            self._traces.lose(self._counted.waiting)

    def _end(self, only_down: bool = False) -> None:
        for exporter, delivery in ((self._spans, self._traces), (self._metrics, self._readings)):
            if exporter is not None and (delivery.down or not only_down):
                exporter.shutdown(0)

    async def _send_metrics(self) -> None:
        if self._metrics is None:
            return
        try:
            self._look()
            await await_in_thread(partial(self._export_metrics, self._metrics), "otlp metrics")
        except Exception:  # no metric is worth a server
            log.exception("metrics could not be read or sent; this reading is lost")
            self._readings.done(1, False)

    def _export_metrics(self, exporter: OTLPMetricExporter) -> None:
        result = exporter.export(self._reader.read())
        self._readings.done(1, result is MetricExportResult.SUCCESS)

    async def _send_traces(self) -> None:
        if self._processor is not None:
            await await_in_thread(self._processor.shutdown, "otlp traces")


def carried_by(metadata: Metadata) -> dict[str, str]:
    """The headers of a trace, as far as they are of a length that one has to pass on."""
    return {
        key: value
        for key, value in metadata
        if key in CARRIED and isinstance(value, str) and len(value) <= MOST_CARRIED
    }


def check(endpoint: str) -> None:
    """Raises ConfigError for what is no collector that can be spoken to."""
    if endpoint != ENV and not endpoint.startswith(("http://", "https://")):
        form = "http://HOST:4317, https://HOST:4317, or env where OTEL_EXPORTER_OTLP_ENDPOINT says it"
        raise ConfigError(f"otel.endpoint must be {form}")
    for signal in ("", "TRACES_", "METRICS_"):
        name = f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL"
        if os.environ.get(name, "grpc") != "grpc":
            text = f"{name} is {os.environ[name]}, and OTLP is spoken by gRPC alone: set it to grpc"
            raise ConfigError(f"{text}, and name the collector's gRPC port, which is 4317")


def resource_of() -> Resource:
    """Who says all this."""
    resource = Resource.create()
    found = {SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: str(uuid4())}
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "lora-router"}))
    return Resource({key: value for key, value in found.items() if key not in resource.attributes}).merge(
        resource
    )


def wanted(name: str) -> bool:
    """Whether that signal is to be sent."""
    return os.environ.get(name, "otlp").strip().lower() != "none"


def number(name: str, default: float) -> float:
    """A variable that is a number above 0. Raises ConfigError."""
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be a number above 0, not {text!r}")
    return value


def milliseconds(name: str, default: float) -> float:
    """The same, in seconds."""
    return number(name, default) / 1000
