"""The queue to the collector: never waited for, never without end, and what is lost is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from router.extensions.otel.otlp import Delivery, Queue, QueueLimits
from router.extensions.otel.spans import Attributes, Ended, SpanOrigin
from router.server.call import CallPhase
from router.server.metrics import ServerMetrics

CONTEXT = SpanContext(1, 2, False, TraceFlags(1))
PARTS: tuple[tuple[CallPhase, Attributes], ...] = tuple(
    (CallPhase(name, 1.0, 2.0), {}) for name in ("route", "lease", "encode")
)
CALL = Ended(SpanOrigin(CONTEXT, None), "chat", {}, "", 0, 1.0, 2.0, PARTS, (), ())  # 4 spans
SLOW = QueueLimits(waiting=8, batch=4, seconds=60.0)


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics()


@pytest.fixture
def delivery(metrics: ServerMetrics) -> Delivery:
    return Delivery("traces", metrics.telemetry_sent, metrics.telemetry_lost)


def counted(metrics: ServerMetrics) -> tuple[float | None, ...]:
    value = metrics.registry.get_sample_value
    return tuple(
        value(f"lora_router_telemetry_{what}_total", {"signal": "traces"}) for what in ("sent", "lost")
    )


def make(name: str) -> Callable[[], Ended]:
    return lambda: replace(CALL, name=name)


def test_batches_go_in_order_and_a_full_one_at_once(metrics: ServerMetrics, delivery: Delivery) -> None:
    seen: list[list[str]] = []

    def export(calls: Sequence[Ended]) -> bool:
        seen.append([call.name for call in calls])
        return True

    queue = Queue(export, delivery, SLOW)
    queue.put(make("a"))
    queue.put(make("b"))
    end = time.monotonic() + 20
    while len(seen) < 2:
        assert time.monotonic() < end
        time.sleep(0.001)
    queue.put(make("c"))
    queue.close(20)
    assert seen == [["a"], ["b"], ["c"]]
    assert counted(metrics) == (12, 0)


def test_one_that_hangs_costs_what_does_not_fit_and_no_time(
    metrics: ServerMetrics, delivery: Delivery
) -> None:
    hangs, goes_on, ended = threading.Event(), threading.Event(), threading.Event()

    def export(calls: Sequence[Ended]) -> bool:
        hangs.set()
        goes_on.wait(60)
        ended.set()
        return False

    queue = Queue(export, delivery, SLOW)
    queue.put(make("a"))
    assert hangs.wait(20)
    for name in "bcdef":
        queue.put(make(name))  # two fit; three more are not even made
    assert counted(metrics) == (0, 3)
    queue.close(0.1)
    assert not ended.is_set()
    assert counted(metrics) == (0, 3 + 8)
    goes_on.set()
    queue._thread.join(20)
    assert counted(metrics) == (0, 3 + 8 + 4)


def test_a_call_that_no_trace_can_be_made_of_is_lost_alone(
    metrics: ServerMetrics, delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(lambda calls: True, delivery, SLOW)
    queue.put(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    queue.put(make("a"))
    queue.close(20)
    assert counted(metrics) == (4, 1)
    assert "could not be made" in caplog.text


def test_one_that_raises_ends_nothing(
    metrics: ServerMetrics, delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    tries: Iterator[bool | Exception] = iter([RuntimeError("no"), True, False, False, True])

    def export(calls: Sequence[Ended]) -> bool:
        outcome: bool | Exception = next(tries)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    queue = Queue(export, delivery, replace(SLOW, waiting=100))
    caplog.set_level("INFO", "router.extensions.otel")
    for name in "abcde":
        queue.put(make(name))
    queue.close(20)
    assert counted(metrics) == (8, 12)
    told = [record.getMessage().split(";")[0] for record in caplog.records]
    down, up = "the OTLP collector does not take what is sent", "traces arrive at the collector again"
    assert told == ["spans could not be made or sent", down, up, down, up]
