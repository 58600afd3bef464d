"""Counters and histograms of calls. Labels are bounded: adapters the registry chose, else `other`."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from router.server.bounded import Bounded
from router.server.interceptors.call import Call
from router.types import Decision, Usage, Vote

SECONDS = tuple(0.01 * 2**n for n in range(14))
FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.6, 1.2)
ROUTING = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
OTHER = ("other", "other")
VERSION = ("adapter", "version")


class Metrics:
    """Every metric that a call changes, in a registry of its own. Times are seconds."""

    def __init__(self, max_adapters: int = 4096, max_classifiers: int = 64) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double what a scraper stores
        self.registry = CollectorRegistry()
        self._adapters = Bounded(max_adapters, OTHER)
        self._classifiers = Bounded(max_classifiers, "other")
        calls = ("grpc_method", "grpc_status")
        self.call_seconds = self._histogram(
            "grpc_server_call_duration_seconds", "Duration of calls by method and status.", calls, SECONDS
        )
        outcome = (*VERSION, "reason", "code")
        self.requests = self._counter(
            "lora_router_requests", "Generations by who answered, why, and how they ended.", outcome
        )
        self.prompt_tokens = self._counter(
            "lora_router_prompt_tokens", "Prompt tokens, those reused included.", VERSION
        )
        self.cached_tokens = self._counter(
            "lora_router_cached_tokens", "Prompt tokens served from the prefix cache.", VERSION
        )
        self.completion_tokens = self._counter("lora_router_completion_tokens", "Tokens generated.", VERSION)
        self.first_token = self._histogram(
            "lora_router_time_to_first_token_seconds",
            "From submission to the first token.",
            VERSION,
            FIRST_TOKEN,
        )
        self.per_token = self._histogram(
            "lora_router_time_per_output_token_seconds",
            "Mean time between tokens of a generation.",
            VERSION,
            PER_TOKEN,
        )
        self.queued = self._histogram(
            "lora_router_queue_seconds", "From submission to the first step.", (), FIRST_TOKEN
        )
        self.routed = self._histogram(
            "lora_router_decision_seconds", "Time to decide where a request goes.", (), ROUTING
        )
        self.classified = self._histogram(
            "lora_router_route_seconds", "Time of one classifier for one request.", ("classifier",), ROUTING
        )
        self.verdicts = self._counter(
            "lora_router_classifier_verdicts", "Votes by classifier and kind.", ("classifier", "verdict")
        )
        self.loads = self._histogram(
            "lora_router_adapter_load_seconds", "Time to bring an adapter into memory.", VERSION, SECONDS
        )
        self.loop_lag = Gauge(
            "lora_router_event_loop_lag_seconds",
            "Worst lateness since the last scrape.",
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def version_labels(self, name: str, version: str) -> tuple[str, str]:
        """Label values of an adapter version."""
        return self._adapters.of((name, version))

    def vote(self, vote: Vote) -> None:
        """A classifier has answered, or failed to."""
        name = self._classifiers.of(vote.classifier)
        self.classified.labels(name).observe(vote.latency)
        self.verdicts.labels(name, _verdict(vote)).inc()

    def record(self, call: Call, code: str, generation: bool) -> None:
        """A call has ended; `generation` if it was to give tokens."""
        self.call_seconds.labels(call.method, code).observe(time.monotonic() - call.started)
        decision = call.decision
        if decision is not None:
            self.routed.observe(decision.latency)
        if not generation:
            return
        labels = self._labels(decision)
        self.requests.labels(*labels, decision.reason.value if decision else "none", code).inc()
        if call.usage is not None:
            self._record_usage(labels, call.usage)

    def _labels(self, decision: Decision | None) -> tuple[str, str]:
        if decision is None:
            return OTHER
        ref = decision.adapter
        return self.version_labels(ref.name, ref.version) if ref else ("base", "")

    def _record_usage(self, labels: tuple[str, str], usage: Usage) -> None:
        self.prompt_tokens.labels(*labels).inc(usage.prompt_tokens)
        self.cached_tokens.labels(*labels).inc(usage.cached_tokens)
        self.completion_tokens.labels(*labels).inc(usage.completion_tokens)
        self.queued.observe(usage.queue_time)
        if usage.completion_tokens:
            self.first_token.labels(*labels).observe(usage.time_to_first_token)
        if usage.completion_tokens > 1:
            decoding = usage.total_time - usage.time_to_first_token
            self.per_token.labels(*labels).observe(decoding / (usage.completion_tokens - 1))


def _verdict(vote: Vote) -> str:
    if vote.error:
        return vote.error.value.replace("-", "_")
    return "declined" if vote.declined else "scored"
