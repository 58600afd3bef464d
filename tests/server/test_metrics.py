"""Row 23 and the metrics of each adapter version, as a scraper sees them."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from prometheus_client.parser import text_string_to_metric_families

from router.access.clients import new_token
from router.engine.base import EngineStatus
from router.errors import Overloaded
from router.server.app import ServerApp
from router.server.call import Call, Endpoint
from router.server.metrics import MAX_BOUNDS, MAX_VERSIONS, Bounded, ServerMetrics
from router.server.policy import GENERATE
from router.types import (
    AdapterEvent,
    AdapterEventKind,
    AdapterRef,
    AdapterState,
    Decision,
    Reason,
    Usage,
    Vote,
    VoteError,
)
from router.v1 import adapters_pb2
from tests.fakes import adapter
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, failure, messages, stream, until

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def server(start_server: Start, fakes: SimpleNamespace) -> ServerApp:
    return await start_server(**vars(fakes), metrics_listen="127.0.0.1:0")


async def scrape(server: ServerApp) -> Samples:
    url = f"http://{server.metrics_address}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_a_request_is_counted_for_its_adapter_version(
    server: ServerApp, stubs: SimpleNamespace
) -> None:
    await stubs.inference.Generate(ask("medical words"))
    await messages(stubs.inference.StreamGenerate(stream()))
    samples = await scrape(server)
    medical = {"adapter": "medical", "version": "1.0.0"}
    base = {"adapter": "base", "version": ""}
    assert value(samples, "lora_router_requests_total", **medical, code="OK") == 1
    assert value(samples, "lora_router_requests_total", **base, code="OK") == 1
    for reason in ("classified", "abstained"):
        assert value(samples, "lora_router_decisions_total", reason=reason) == 1
    assert value(samples, "lora_router_completion_tokens_total", **medical) == 3
    assert value(samples, "lora_router_prompt_tokens_total", **base) == 13
    for name in ("time_to_first_token", "time_per_output_token", "queue"):
        assert value(samples, f"lora_router_{name}_seconds_count") == 2
    assert value(samples, "lora_router_adapter_load_seconds_count") == 1
    whole = value(samples, "lora_router_adapter_answer_seconds_total", **medical)
    assert 0 < value(samples, "lora_router_adapter_first_token_seconds_total", **medical) <= whole
    assert value(samples, "lora_router_route_seconds_count", classifier="words") == 2
    verdicts = "lora_router_classifier_verdicts_total"
    assert value(samples, verdicts, classifier="words", verdict="scored") == 1
    assert value(samples, verdicts, classifier="words", verdict="declined") == 1
    for tier in ("device", "host"):
        assert value(samples, "lora_router_adapter_resident", **medical, tier=tier) == 1


async def test_calls_are_timed_by_method_and_status(
    server: ServerApp, stubs: SimpleNamespace, fakes: SimpleNamespace
) -> None:
    await stubs.inference.Generate(ask())
    fakes.router.error = Overloaded("full", bound="engine")
    await failure(stubs.inference.Generate(ask()))
    asked = HealthCheckRequest(service="no.such").SerializeToString()
    await failure(stubs.channel.unary_unary("/grpc.health.v1.Health/Check")(asked))
    samples = await scrape(server)
    health = {"grpc_method": "/grpc.health.v1.Health/Check", "grpc_status": "NOT_FOUND"}
    assert value(samples, "grpc_server_call_duration_seconds_count", **health) == 1
    for status in ("OK", "UNAVAILABLE"):
        name = "grpc_server_call_duration_seconds_count"
        labels = {"grpc_method": "/router.v1.InferenceService/Generate", "grpc_status": status}
        assert value(samples, name, **labels) == 1
    refused = {"adapter": "other", "version": "other", "code": "UNAVAILABLE"}
    assert value(samples, "lora_router_requests_total", **refused) == 1
    assert value(samples, "lora_router_decisions_total", reason="none") == 1


async def test_calls_by_client_and_tokens_by_tenant(
    start_server: Start, connect: Connect, fakes: SimpleNamespace, tmp_path: Path
) -> None:
    more = '[[tenant]]\nid = "acme"\ntokens_per_minute = 1000'
    clients = write_clients(tmp_path, one=("infer",), two=("infer",))
    text = clients.path.read_text().replace('id = "', 'tenant = "acme"\nid = "')
    clients.path.write_text(text + more)
    server = await start_server(**vars(fakes), clients=clients.path, metrics_listen="127.0.0.1:0")
    stubs = connect(server)
    for token in (clients.one, clients.one, clients.two):
        await stubs.inference.Generate(ask("one two"), metadata=bearer(token))
    await failure(stubs.inference.Generate(ask(sampling={"max_tokens": 2000}), metadata=bearer(clients.two)))
    await failure(stubs.inference.Generate(ask(), metadata=bearer(new_token("mallory"))))
    await failure(
        stubs.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(), metadata=bearer(clients.two))
    )
    samples = await scrape(server)
    calls = {
        (labels["client"], labels["tenant"], labels["code"]): number
        for (name, of), number in samples.items()
        if name == "lora_router_client_requests_total" and (labels := dict(of))
    }
    assert calls == {
        ("one", "acme", "OK"): 2,
        ("two", "acme", "OK"): 1,
        ("two", "acme", "RESOURCE_EXHAUSTED"): 1,
        ("two", "acme", "PERMISSION_DENIED"): 1,
    }
    tokens = "lora_router_tenant_tokens_total"
    assert value(samples, tokens, tenant="acme", kind="completion") == 9
    assert value(samples, tokens, tenant="acme", kind="prompt") > 9
    assert "mallory" not in repr(samples)


async def test_bounds_cannot_make_labels_without_end(
    server: ServerApp, stubs: SimpleNamespace, fakes: SimpleNamespace
) -> None:
    """A plugin's error may have any."""
    for i in range(MAX_BOUNDS + 5):
        fakes.router.error = Overloaded("full", bound=f"made-{i}")
        await failure(stubs.inference.Generate(ask()))
    samples = await scrape(server)
    assert value(samples, "lora_router_shed_total", bound="made-0") == 1
    assert value(samples, "lora_router_shed_total", bound="other") == 5


async def test_callers_cannot_make_labels(server: ServerApp, stubs: SimpleNamespace) -> None:
    for i in range(20):
        await failure(stubs.inference.Generate(ask(routing={"adapter": f"adapters/made-up-{i}"})))
        await failure(stubs.channel.unary_unary(f"/made.up/Method{i}")(b""))
    assert "made" not in repr(await scrape(server))


def test_bounded_labels() -> None:
    labels = Bounded(2, "other")
    assert [labels.of(v) for v in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]


@pytest.mark.slow
async def test_event_loop_lag_stays_low_at_16_streams(server: ServerApp, stubs: SimpleNamespace) -> None:
    """Row 31. The best of three, since other processes can hold up any loop."""
    request, lags = stream(sampling={"max_tokens": 100, "min_tokens": 100}), []
    for _ in range(3):
        await scrape(server)
        await asyncio.gather(*(messages(stubs.inference.StreamGenerate(request)) for _ in range(16)))
        lags.append(value(await scrape(server), "lora_router_event_loop_lag_seconds"))
    assert min(lags) < 0.05


@pytest.mark.slow
async def test_a_blocked_loop_is_seen(server: ServerApp) -> None:
    await scrape(server)
    time.sleep(0.2)  # noqa: ASYNC251  # what must never happen, on purpose
    await asyncio.sleep(0.06)
    assert value(await scrape(server), "lora_router_event_loop_lag_seconds") > 0.1


def test_lost_votes_are_counted_by_what_routing_calls_them() -> None:
    metrics = ServerMetrics()
    for error in VoteError:
        metrics.vote(Vote("words", error=error))
    counted = {
        sample.labels["verdict"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "lora_router_classifier_verdicts_total"
    }
    assert counted == {"timeout", "breaker_open", "not_ready", "disabled", "raised", "invalid", "other"}


async def test_what_must_not_stay_is_counted(
    server: ServerApp, stubs: SimpleNamespace, fakes: SimpleNamespace
) -> None:
    await stubs.inference.Generate(ask("medical words"))
    idle = await scrape(server)
    assert value(idle, "lora_router_adapter_leases") == 0
    assert value(idle, "lora_router_adapter_slots_used") == 1
    fakes.engine.hold()
    asking = [asyncio.ensure_future(stubs.inference.Generate(ask("medical words"))) for _ in range(3)]
    await until(lambda: fakes.engine.status().waiting == 3)
    busy = await scrape(server)
    fakes.engine.resume()
    await asyncio.gather(*asking)
    assert value(busy, "lora_router_adapter_leases") == 3
    tasks = "lora_router_event_loop_tasks"
    assert value(busy, tasks) >= value(idle, tasks) + 3


async def test_preemptions_are_counted_as_the_engine_counts_them() -> None:
    metrics = ServerMetrics()
    metrics.look(EngineStatus(preemptions=3), [], leases=0)
    assert metrics.registry.get_sample_value("lora_router_preemptions_total") == 3


async def test_states_and_probes_are_on_the_page(server: ServerApp, fakes: SimpleNamespace) -> None:
    fakes.registry.put(adapter("broken", state=AdapterState.QUARANTINED))
    fakes.registry.put(adapter("gone"))
    fakes.registry.remove(AdapterRef("gone", "1.0.0"))
    await until(lambda: len(server.metrics.states) == 3)
    samples = await scrape(server)
    states = "lora_router_adapter_versions"
    assert value(samples, states, state="quarantined") == 1
    assert value(samples, states, state="discovered") == 2
    assert value(samples, states, state="ready") == 0
    for probe in ("healthz", "readyz"):
        assert value(samples, "lora_router_probe_ok", probe=probe) == 1
    server.health.drain()
    assert value(await scrape(server), "lora_router_probe_ok", probe="readyz") == 0


async def test_load_times_are_read_off_events() -> None:
    info, metrics = adapter("medical"), ServerMetrics()

    async def events():
        for at, state in [(1.0, "loading"), (1.5, "ready"), (2.0, "ready"), (3.0, "loading")]:
            yield AdapterEvent(AdapterEventKind.CHANGED, replace(info, state=AdapterState(state)), at)

    await metrics.follow_adapters(events())
    (family,) = metrics.loads.collect()
    seen = [(s.labels, s.value) for s in family.samples if s.name.endswith(("_count", "_sum"))]
    assert seen == [({}, value) for value in (1, 0.5)]


def ended(ref: AdapterRef, code: str) -> Call:
    """A generation of that version."""
    call = GrpcLikeCall(Endpoint("/router.v1.InferenceService/Generate", GENERATE, print), "r")
    call.answer.decision = Decision(ref, Reason.CLASSIFIED)
    if code == "OK":
        call.answer.usage = Usage(20, 5, 8, 0.001, 0.05, 0.5)
    return call


class GrpcLikeCall(Call):
    transport = "grpc"


CODES = ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND")


def series(metrics: ServerMetrics) -> int:
    return sum(len(family.samples) for family in metrics.registry.collect())


async def test_a_version_that_answered_has_at_most_12_series_whatever_happened_to_its_requests() -> None:
    metrics, refs = ServerMetrics(), [AdapterRef(f"adapter-{i}", "1.0.0") for i in range(4)]
    infos = [replace(adapter(ref.name), digest=f"{ref.name}") for ref in refs]
    counts = []
    for present in range(1, len(refs) + 1):
        ref = refs[present - 1]
        for code in CODES:
            metrics.record(ended(ref, code), code, code)
        held = tuple(info.digest for info in infos[:present])
        metrics.look(EngineStatus(device_adapters=held, host_adapters=held), infos[:present], 0)
        counts.append(series(metrics))
    (each,) = {after - before for before, after in pairwise(counts)}
    assert each <= 12


async def test_the_201st_version_is_one_of_the_others_until_a_version_is_gone() -> None:
    metrics = ServerMetrics()
    refs = [AdapterRef("many", f"1.0.{i}") for i in range(MAX_VERSIONS + 3)]
    for ref in refs:
        metrics.record(ended(ref, "OK"), "OK", "OK")
    get = metrics.registry.get_sample_value
    name, other = "lora_router_requests_total", {"adapter": "other", "version": "other", "code": "OK"}
    assert get(name, other) == 3
    first, last = ({"adapter": "many", "version": one.version, "code": "OK"} for one in (refs[0], refs[-1]))
    assert (get(name, first), get(name, last)) == (1, None)
    metrics.forget(refs[0])
    metrics.record(ended(refs[-1], "OK"), "OK", "OK")
    assert (get(name, first), get(name, last), get(name, other)) == (None, 1, 3)  # no count became less


async def test_an_idle_server_has_at_most_120_series(server: ServerApp) -> None:
    for _ in range(3):
        samples = await scrape(server)
    assert len(samples) <= 120
    build = [dict(labels) for (name, labels) in samples if name == "lora_router_build_info"]
    assert [(one["base"], one["engine"]) for one in build] == [(server.engine.info.name, "torch")]
