"""The same numbers on the page and by OTLP, and names that the conventions have."""

from __future__ import annotations

import ast
import asyncio
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import opentelemetry.semconv
import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric
from prometheus_client.registry import Collector as Collecting

from router.extensions.otel import readings, spans
from router.server.app import ServerApp
from tests.deploy.test_dashboards import metrics
from tests.extensions.otel.collector import Collector, until, values
from tests.extensions.otel.conftest import StartTraced
from tests.server.helpers import Connect, ask

OURS = Path(spans.__file__).parent
FAMILIES = ("gen_ai.", "rpc.", "feature_flag.", "http.", "error.", "process.", "service.")


async def page(server: ServerApp, accept: str = "*/*") -> str:
    request = urllib.request.Request(f"http://{server.metrics_address}/metrics", headers={"Accept": accept})
    return await asyncio.to_thread(lambda: urllib.request.urlopen(request).read().decode())


async def test_the_collector_gets_what_the_page_says(
    traced: StartTraced, connect: Connect, collector: Collector, fakes: SimpleNamespace
) -> None:
    server = await traced()
    await connect(server).inference.Generate(ask("medical words"))
    await until(lambda: "gen_ai.server.request.duration" in collector.metrics)
    told = collector.metrics
    (point,) = told["gen_ai.server.request.duration"].histogram.data_points
    assert values(point.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lora_router",
    }
    assert (point.count, sum(point.bucket_counts)) == (1, 1)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    calls = {
        values(p.attributes)["rpc.method"]: values(p.attributes)
        for p in told["rpc.server.call.duration"].histogram.data_points
    }
    assert calls["router.v1.InferenceService/Generate"]["rpc.response.status_code"] == "OK"
    (tokens,) = told["lora_router.completion_tokens"].sum.data_points
    assert (tokens.as_double, values(tokens.attributes)) == (3, {"adapter": "medical", "version": "1.0.0"})
    assert told["lora_router.completion_tokens"].sum.is_monotonic
    assert told["lora_router.queue"].unit == "s"
    assert told["process.memory.usage"].sum.data_points[0].as_double > 0
    assert "lora_router.certificate_expires_timestamp" not in told  # it is +Inf
    assert told["lora_router.probe_ok"].gauge.data_points[0].as_double == 1
    on_page = {
        line.split()[2]
        for line in (await page(server)).splitlines()
        if line.startswith("# TYPE lora_router_")
    }
    assert len(on_page) > 30


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def conventions() -> dict[str, str]:
    """Every name that the package has, with what it says of it."""
    found = {}
    for path in Path(opentelemetry.semconv.__file__).parent.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, after in pairwise([*body, None]):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant):
                doc = (
                    after.value.value
                    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    else ""
                )
                found[str(node.value.value)] = str(doc)
    return found


def test_every_name_is_one_of_the_conventions() -> None:
    known = conventions()
    used = {text for path in OURS.glob("*.py") for text in strings(path) if text.startswith(FAMILIES)}
    used -= {"gen_ai.request."}  # what comes behind it:
    used |= {f"gen_ai.request.{name}" for name in spans.SAMPLING}
    used -= {spans.EXPOSURE}  # an event, which the package does not list
    assert {spans.EXPOSURE.partition(".")[0]} == {"feature_flag"}
    assert {"gen_ai.server.time_to_first_token", "rpc.server.call.duration", "feature_flag.key"} <= used
    assert used - known.keys() == set()
    # "Moved" is where GenAI's conventions live now; "Replaced" and "Removed" would be an old name.
    assert [name for name in used if "Replaced" in known[name] or "Removed" in known[name]] == []


def test_everything_on_the_page_can_be_sent() -> None:
    """Also what only a server with experiments and corrections has."""
    registry = metrics().registry
    read = readings.RegistryReader(registry, Resource({}), InstrumentationScope("test")).read()
    (sent,) = encode_metrics(read).resource_metrics[0].scope_metrics
    names = {metric.name for metric in sent.metrics}
    assert {"lora_router.experiment_store_up", "lora_router.experiments_running"} <= names
    assert {metric.WhichOneof("data") for metric in sent.metrics} == {"gauge", "sum", "histogram"}


async def test_a_reading_that_fails_is_lost_and_no_more(
    traced: StartTraced, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = await traced()

    class Broken(Collecting):
        def collect(self) -> Iterator[Metric]:
            raise RuntimeError("no")

    broken = Broken()
    broken.describe = list  # type: ignore[attr-defined]  # registering it asks nothing of it
    server.metrics.registry.register(broken)
    lost = server.metrics.telemetry_lost.labels("metrics")
    await until(lambda: lost._value.get() >= 2)
    assert (await connect(server).inference.Generate(ask())).text
    assert "metrics could not be read or sent" in caplog.text
    server.metrics.registry.unregister(broken)
    sent = server.metrics.telemetry_sent.labels("metrics")
    before = sent._value.get()
    await until(lambda: sent._value.get() > before)


def test_phases_are_named_as_documented() -> None:
    assert (spans.QUEUE, spans.PREFILL, spans.DECODE) == ("queue", "prefill", "decode")
    assert readings.by_rule("lora_router_adapter_host_bytes") == readings.NamedMetric(
        "lora_router.adapter_host", "By"
    )
