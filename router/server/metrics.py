"""What a scraper sees: counted at every call, measured in between, or read off engine and registry just then.

Labels are bounded: adapters the registry chose, else `other`; clients and tenants of the clients file, never
a name that a caller sends. Times are seconds.
"""

from __future__ import annotations

import asyncio
import math
import platform
import time
from collections import Counter as Count
from collections.abc import AsyncIterable, Callable, Hashable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router import __version__
from router.engine.base import BaseInfo, EngineStatus
from router.server.call import CURRENT, Call
from router.types import (
    AdapterEvent,
    AdapterEventKind,
    AdapterInfo,
    AdapterRef,
    AdapterState,
    Decision,
    Usage,
    Vote,
)

if TYPE_CHECKING:
    from router.access.access import Access
    from router.access.audit import Audit
    from router.server.tls import Tls

# Upper ends of buckets
SECONDS = (0.01, 0.05, 0.25, 1, 2.5, 10, 60)
FIRST_TOKEN = (0.01, 0.05, 0.15, 0.5, 1, 2.5, 5, 30)
PER_TOKEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1)
ROUTING = (0.0002, 0.001, 0.003, 0.01, 0.03, 0.1, 0.5)
PREFIX = "lora_router_"
# Labels
VERSION = ("adapter", "version")
CLIENT, TENANT = ("client", "tenant", "code"), ("tenant", "kind")  # as many as the clients file has
BUILD = ("version", "python", "torch", "base", "base_digest", "engine")
OTHER = ("other", "other")
MAX_VERSIONS, MAX_CLASSIFIERS, MAX_BOUNDS = 200, 64, 64  # that get labels of their own
OF_VERSIONS = {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL"}
"""Codes that a version has series for; a request that was refused counts for no version."""

LAG_SECONDS = 0.05  # between two looks at how late the event loop is
T = TypeVar("T", bound=Hashable)


class ServerMetrics:
    """Every metric of a server, in a registry of its own."""

    def __init__(self) -> None:
        self.updates: list[Callable[[], None]] = []  # called on the event loop before metrics are read
        self.ended: list[
            Callable[[Call, str, str], None]
        ] = []  # called with each request, outcome and reason
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double what a scraper stores
        self.registry = CollectorRegistry()
        self._versions = Bounded(MAX_VERSIONS, OTHER)
        self._classifiers = Bounded(MAX_CLASSIFIERS, "other")
        self._bounds = Bounded(MAX_BOUNDS, "other")
        self._state = StateCollector(self._version)
        self.registry.register(self._state)
        self.call_seconds = Histogram(
            "grpc_server_call_duration_seconds",
            "Duration of gRPC calls.",
            ("grpc_method", "grpc_status"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "http_server_request_duration_seconds",
            "Duration of HTTP requests.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=SECONDS,
            registry=self.registry,
        )
        counter, histogram, gauge = self._counter, self._histogram, self._gauge
        # Generations
        self.requests = counter(
            "requests", "Requests that generate text, by the version that answered.", *VERSION, "code"
        )
        self.decisions = counter(
            "decisions", "Requests that generate text, by the reason of the decision.", "reason"
        )
        self.request_seconds = histogram(
            "request_seconds", "Time from a request's arrival to its end.", SECONDS, "code"
        )
        self.answer_seconds = counter(
            "adapter_answer_seconds", "Sum of the times of requests with the code OK.", *VERSION
        )
        self.first_token_seconds = counter(
            "adapter_first_token_seconds",
            "The part of these times from submission to the first token.",
            *VERSION,
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, cached ones included.", *VERSION)
        self.cached_tokens = counter("cached_tokens", "Prompt tokens served from the prefix cache.")
        self.accepted_draft_tokens = counter(
            "accepted_draft_tokens", "Tokens of answers that were drafts of speculation."
        )
        self.completion_tokens = counter("completion_tokens", "Tokens of answers.", *VERSION)
        self.first_token = histogram(
            "time_to_first_token_seconds", "Time from submission to the first token.", FIRST_TOKEN
        )
        self.per_token = histogram(
            "time_per_output_token_seconds", "Mean time between two tokens of an answer.", PER_TOKEN
        )
        self.queued = histogram("queue_seconds", "Time from submission to the first step.", FIRST_TOKEN)
        # Routing and adapters
        self.routed = histogram("decision_seconds", "Time of a routing decision.", ROUTING)
        self.classified = histogram(
            "route_seconds", "Time of one classifier for one request.", ROUTING, "classifier"
        )
        self.verdicts = counter(
            "classifier_verdicts",
            "Votes: scored, declined; lost: timeout, breaker_open, not_ready, disabled, raised, invalid.",
            "classifier",
            "verdict",
        )
        self.loads = histogram("adapter_load_seconds", "Time to load an adapter into memory.", SECONDS)
        self.versions = gauge(
            "adapter_versions",
            "Adapter versions: discovered, loading, ready, offloaded, quarantined.",
            "state",
        )
        self.leases = gauge(
            "adapter_leases", "Requests that hold an adapter in memory, replaced versions included."
        )
        self.mixtures = gauge("mixtures", "Mixtures of adapters in memory.")
        # Callers
        self.client_calls = counter("client_requests", "Calls of the clients of the clients file.", *CLIENT)
        self.tenant_tokens = counter(
            "tenant_tokens", "Tokens by tenant, of the kinds prompt and completion.", *TENANT
        )
        self.shed = counter("shed", "Calls refused or ended because they met a limit.", "bound")
        # The server itself
        self.telemetry_sent = counter(
            "telemetry_sent",
            "Spans (traces), and readings of all metrics (metrics), that the OTLP collector took.",
            "signal",
        )
        self.telemetry_lost = counter(
            "telemetry_lost",
            "Those lost: the queue was full, or the collector did not take them.",
            "signal",
        )
        self.probes = gauge("probe_ok", "1 while the probe (healthz, readyz) answers 200.", "probe")
        self.loop_lag = gauge(
            "event_loop_lag_seconds", "Longest delay of the event loop since the last scrape."
        )
        self.tasks = gauge("event_loop_tasks", "Tasks in the event loop.")
        self.stale = gauge(
            "credentials_stale",
            "1 while a file (clients, jwks, tls) cannot be used; its previous content is in force.",
            "file",
        )
        self.unaudited = gauge("audit_lines_lost", "Lines that the audit file did not take.")
        self.certificate_ends = gauge(
            "certificate_expires_timestamp_seconds",
            "Unix time at which the server's certificate expires; +Inf without one.",
        )
        self.certificate_ends.set(math.inf)
        self._build = gauge("build_info", "1; the labels say what this server is.", *BUILD)
        ProcessCollector(registry=self.registry)
        self._worst_lag = 0.0
        self.states: dict[AdapterRef, AdapterState] = {}  # as the registry's events told them

    def vote(self, vote: Vote) -> None:
        """A classifier has answered, or failed to; the present call notes it for its trace."""
        if (call := CURRENT.get(None)) is not None:
            call.answer.votes.append(vote)
        name = self._classifiers.of(vote.classifier)
        self.classified.labels(name).observe(vote.latency)
        self.verdicts.labels(name, _verdict(vote)).inc()

    def refused(self, bound: str) -> None:
        """A call met that bound. The server has few; errors of plugins and replicas may name others."""
        self.shed.labels(self._bounds.of(bound)).inc()

    def record(self, call: Call, code: str, outcome: str, reason: str = "") -> None:
        """A call has ended with that code, and the request that it was with that outcome. `reason` is that of
        its error."""
        seconds = time.monotonic() - call.started
        if not call.policy.counted:
            pass
        elif call.transport == "http":
            status = str(call.status)
            self.http_seconds.labels(call.verb, call.route, status).observe(seconds)
        else:
            self.call_seconds.labels(call.method, code).observe(seconds)
        decision = call.answer.decision
        if decision is not None:
            self.routed.observe(decision.latency)
        if call.client.id:
            self.client_calls.labels(call.client.id, call.client.tenant, code).inc()
        if not call.policy.generates:
            return
        for observer in self.ended:
            observer(call, outcome, reason)
        labels = self._labels(decision) if outcome in OF_VERSIONS else OTHER
        self.requests.labels(*labels, outcome).inc()
        self.decisions.labels(decision.reason.value if decision else "none").inc()
        self.request_seconds.labels(outcome).observe(seconds)
        if call.answer.usage is not None:
            self._record_usage(labels, call.answer.usage)
            if outcome == "OK":
                self.answer_seconds.labels(*labels).inc(seconds)
                first = call.answer.usage.time_to_first_token if call.answer.usage.completion_tokens else 0.0
                self.first_token_seconds.labels(*labels).inc(first)
            if tenant := call.client.tenant:
                self.tenant_tokens.labels(tenant, "prompt").inc(call.answer.usage.prompt_tokens)
                self.tenant_tokens.labels(tenant, "completion").inc(call.answer.usage.completion_tokens)

    def built(self, info: BaseInfo, engine: str) -> None:
        """What this server is, once the base is loaded."""
        versions = (__version__, platform.python_version(), version_of("torch"))
        self._build.labels(*versions, info.name, info.served_digest, engine).set(1)

    async def follow_adapters(self, events: AsyncIterable[AdapterEvent]) -> None:
        """Keep every version's state, and measure every cold load: a LOADING that became READY, by the
        registry's own times."""
        began: dict[AdapterRef, float] = {}
        async for event in events:
            ref, state = event.adapter.ref, event.adapter.state
            if event.kind is AdapterEventKind.REMOVED:
                self.states.pop(ref, None)
                self.forget(ref)
                continue
            self.states[ref] = state
            if state is AdapterState.LOADING:
                began.setdefault(ref, event.time)
                continue
            start = began.pop(ref, None)
            if start is not None and state is AdapterState.READY:
                self.loads.observe(max(event.time - start, 0.0))

    def forget(self, ref: AdapterRef) -> None:
        """The version is gone: end its series, so that another may have labels of its own."""
        labels = (ref.name, ref.version)
        self._versions.forget(labels)
        counters = (
            *(self.requests, self.prompt_tokens, self.completion_tokens),
            *(self.answer_seconds, self.first_token_seconds),
        )
        for counter in counters:
            counter.remove_by_labels(dict(zip(VERSION, labels, strict=True)))

    async def follow_lag(self) -> None:
        """Sleep and see how much too late the loop comes back: what a blocking call costs every stream."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._worst_lag = max(self._worst_lag, loop.time() - due)

    def look(
        self, status: EngineStatus, adapters: Iterable[AdapterInfo], leases: int, mixtures: int = 0
    ) -> None:
        """Before a scrape, on the event loop, where engine and registry may be asked: what is now."""
        self.tasks.set(len(asyncio.all_tasks()))
        self.leases.set(leases)
        self.mixtures.set(mixtures)
        self.loop_lag.set(self._worst_lag)
        self._worst_lag = 0.0
        counted = Count(self.states.values())
        for state in AdapterState:
            self.versions.labels(state.value).set(counted[state])
        self._state.look(status, adapters)
        for update in self.updates:
            update()

    def look_at_files(self, access: Access, tls: Tls | None, audit: Audit | None) -> None:
        """Whether what was read of files is what they hold now."""
        self.stale.labels("clients").set(bool(access.problem))
        self.stale.labels("jwks").set(bool(access.keys_problem))
        self.stale.labels("tls").set(tls is not None and bool(tls.problem))
        self.unaudited.set(audit.failed if audit is not None else 0)
        if tls is not None:
            self.certificate_ends.set(tls.expires)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

    def _labels(self, decision: Decision | None) -> tuple[str, str]:
        if decision is None:
            return OTHER
        return self._version(decision.adapter) if decision.adapter else decision.answered_by

    def _version(self, ref: AdapterRef) -> tuple[str, str]:
        return self._versions.of((ref.name, ref.version))

    def _record_usage(self, labels: tuple[str, str], usage: Usage) -> None:
        self.prompt_tokens.labels(*labels).inc(usage.prompt_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.accepted_draft_tokens.inc(usage.accepted_draft_tokens)
        self.completion_tokens.labels(*labels).inc(usage.completion_tokens)
        self.queued.observe(usage.queue_time)
        if usage.completion_tokens:
            self.first_token.observe(usage.time_to_first_token)
        if usage.completion_tokens > 1:
            decoding = usage.total_time - usage.time_to_first_token
            self.per_token.observe(decoding / (usage.completion_tokens - 1))


def version_of(package: str) -> str:
    """The version that is installed; empty for none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def samples_of(metric: Any, ending: str) -> Iterable[tuple[Mapping[str, str], float]]:
    """Labels and value of the samples whose name ends so."""
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(ending):
                yield sample.labels, sample.value


def _verdict(vote: Vote) -> str:
    if vote.error:
        return vote.error.value.replace("-", "_")
    return "declined" if vote.declined else "scored"


class StateCollector(Collector):
    """What engine and registry say of themselves. `look` runs on the event loop; `collect` anywhere."""

    def __init__(self, labels: Callable[[AdapterRef], tuple[str, str]]) -> None:
        self._labels = labels
        self._status = EngineStatus()
        self._resident: tuple[tuple[str, str, str], ...] = ()

    def look(self, status: EngineStatus, adapters: Iterable[AdapterInfo]) -> None:
        """Remember the present state."""
        tiers = {"device": set(status.device_adapters), "host": set(status.host_adapters)}
        self._status = status
        self._resident = tuple(
            sorted(
                {
                    (*self._labels(info.ref), tier)
                    for info in adapters
                    for tier, digests in tiers.items()
                    if info.digest in digests
                }
            )
        )

    def collect(self) -> Iterator[Metric]:
        """What was seen last."""
        status = self._status
        used = 1 - status.cache_blocks_free / status.cache_blocks if status.cache_blocks else 0.0
        gauges = {
            "lora_router_requests_running": ("Requests in the batch.", status.running),
            "lora_router_requests_waiting": ("Requests in the engine's queue.", status.waiting),
            "lora_router_kv_cache_usage_ratio": ("Share of the KV cache in use, 0 to 1.", used),
            "lora_router_adapter_host_bytes": ("Adapter weights in host memory.", status.host_bytes),
            "lora_router_adapter_slots": ("Adapter slots on the device.", status.slots),
            "lora_router_adapter_slots_used": ("Slots with an adapter.", len(status.device_adapters)),
            "lora_router_engine_flaws": ("Faults of the engine, such as lost replicas.", len(status.flaws)),
        }
        counters = {
            "lora_router_steps": ("Steps of the engine.", status.steps),
            "lora_router_preemptions": (
                "Requests that gave their blocks back to a full KV cache.",
                status.preemptions,
            ),
            "lora_router_prefix_cache_hit_tokens": (
                "Prompt tokens found in the cache.",
                status.prefix_hit_tokens,
            ),
            "lora_router_prefix_cache_query_tokens": (
                "Prompt tokens looked up in the cache.",
                status.prefix_query_tokens,
            ),
        }
        yield from (GaugeMetricFamily(name, text, value) for name, (text, value) in gauges.items())
        yield from (CounterMetricFamily(name, text, value) for name, (text, value) in counters.items())
        resident = GaugeMetricFamily(
            "lora_router_adapter_resident",
            "1 while the version is in memory of the tier (device, host).",
            labels=("adapter", "version", "tier"),
        )
        for labels in self._resident:
            resident.add_metric(labels, 1)
        yield resident


class Bounded(Generic[T]):
    """Remembers the first `limit` values it sees; any other becomes `rest`."""

    def __init__(self, limit: int, rest: T) -> None:
        self._limit, self._rest = limit, rest
        self._seen: set[T] = set()

    def of(self, value: T) -> T:
        """`value` or the rest."""
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return self._rest
        self._seen.add(value)
        return value

    def forget(self, value: T) -> None:
        """Make room for another."""
        self._seen.discard(value)
