"""The collector and the server: none that fails, hangs or is not there changes what a request gets."""

from __future__ import annotations

import logging
import socket
import sys
import time
from types import SimpleNamespace

import pytest

from router.errors import ConfigError
from router.extensions.otel import opened
from router.server.metrics import ServerMetrics
from tests.extensions.otel.collector import Collector, until
from tests.extensions.otel.conftest import StartTraced
from tests.server.helpers import Connect, Start, ask

COLLECTOR = "http://127.0.0.1:4317"


async def test_a_dead_collector_changes_nothing_and_is_told_once(
    start_server: Start,
    fakes: SimpleNamespace,
    connect: Connect,
    soon: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100000")
    with socket.socket() as nobody:  # bound, and never listens
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        server = await start_server(**vars(fakes), **{"otel.endpoint": url})
        stubs, lost = connect(server), server.metrics.telemetry_lost.labels("traces")
        for _ in range(3):
            before = lost._value.get()
            assert (await stubs.inference.Generate(ask("medical words"))).text
            await until(lambda before=before: lost._value.get() > before)
        began = time.monotonic()
        await server.stop()
        assert time.monotonic() - began < 10.0
    told = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.name for r in told if r.name.startswith("opentelemetry")] == []
    assert [r.fields["signal"] for r in told] == ["traces", "metrics"]  # type: ignore[attr-defined]
    assert "UNAVAILABLE" in str(told[0].fields)  # type: ignore[attr-defined]
    assert lost._value.get() == 3 * 7


async def test_what_waits_is_sent_when_the_server_stops(
    traced: StartTraced, connect: Connect, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100000")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100000")
    server = await traced()
    await connect(server).inference.Generate(ask())
    assert (collector.spans, collector.metrics) == ([], {})
    await server.stop()
    assert {span.name for span in collector.spans} >= {"chat auto", "route", "decode"}
    assert "gen_ai.server.request.duration" in collector.metrics


@pytest.mark.parametrize(
    ("endpoint", "variables", "said"),
    [
        ("localhost:4317", {}, "otel.endpoint must be http://HOST:4317"),
        ("env", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "spoken by gRPC alone: set it to grpc"),
        ("env", {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/json"}, "METRICS_PROTOCOL is http/json"),
        ("env", {"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE must be a number above 0"),
        ("env", {"OTEL_EXPORTER_OTLP_COMPRESSION": "best"}, "look at OTEL_[*] in the environment"),
    ],
)
def test_what_cannot_be_is_said_at_the_start(
    endpoint: str, variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        opened(endpoint, ServerMetrics(), lambda: None)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "router.extensions.otel.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[otel\]' in the checkout"):
        opened(COLLECTOR, ServerMetrics(), lambda: None)
    assert opened("", ServerMetrics(), lambda: None) is None


def test_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert opened(COLLECTOR, ServerMetrics(), lambda: None) is None
