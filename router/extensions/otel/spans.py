"""A call that has ended as spans, of the values that it kept while it ran.

Names are those of GenAI and RPC where they have one, else `lora_router.*`. No text of a prompt or an answer,
no stop string, no constraint, no label and no address of a caller is here.

A call is one span of the server, with children for route, lease, encode, queue, prefill and decode, as far
as it came. The times of the last three are those of the engine's own `Usage`; of an answer that broke off
there is none, and what is known then is when it was submitted and when its first token came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from router.names import AUTO
from router.ports import Exposed
from router.server.call import ROUTE, Call, CallPhase
from router.types import Decision, Request, Usage, Vote

Value = str | bool | int | float | list[str]
Attributes = dict[str, Value]

PROVIDER = "lora_router"
# Codes of gRPC that are the server's fault, by the conventions for RPC.
SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
MOST_PATH = 256  # characters of a path that is not served
HTTP = "http"
EXPOSURE = "feature_flag.evaluation"  # the event


def name_of(call: Call) -> str:
    """What its span is called: of few names, whatever callers say."""
    if call.policy.generates:
        operation = operation_of(call.answer.request)
        return f"{operation} {call.answer.model or AUTO}" if call.answer.decision is not None else operation
    return call.method.removeprefix("/").strip()


def of_call(call: Call, code: str, reason: str) -> Attributes:
    """Of the span of a call that has ended."""
    found: Attributes = {"lora_router.request_id": call.request_id}
    if call.transport == HTTP:
        found["http.request.method"] = call.verb
        found["http.response.status_code"] = call.status
        found["url.scheme"] = call.scheme
        if call.route:
            found["http.route"] = call.route
        else:
            found["url.path"] = call.unserved[:MOST_PATH]
    else:
        found["rpc.system.name"] = "grpc"
        found["rpc.method"] = call.method.removeprefix("/")
        found["rpc.response.status_code"] = code
    if call.answer.model:
        found["gen_ai.request.model"] = call.answer.model
    if code != "OK":
        found["error.type"] = reason or code
    if call.refused_field:
        found["lora_router.field"] = call.refused_field
    if call.client.id:
        found["lora_router.client"] = call.client.id
        found["lora_router.tenant"] = call.client.tenant
    if call.policy.generates:
        found |= _generation(call)
    if call.answer.decision is not None:
        found |= of_decision(call.answer.decision)
    return found


def _generation(call: Call) -> Attributes:
    found: Attributes = {
        "gen_ai.operation.name": operation_of(call.answer.request),
        "gen_ai.provider.name": PROVIDER,
    }
    if call.response_id:
        found["gen_ai.response.id"] = call.response_id
    if call.answer.request is not None:
        sampling = call.answer.request.sampling
        values = ((name, getattr(sampling, name)) for name in SAMPLING)
        found |= {f"gen_ai.request.{name}": value for name, value in values if value is not None}
        if sampling.constraint is not None and sampling.constraint.kind != "unconstrained":
            found["gen_ai.output.type"] = "json" if sampling.constraint.kind == "json_schema" else "text"
    if call.answer.decision is not None:
        found["gen_ai.response.model"] = model_of(call.answer.decision)
    if call.answer.finish:
        found["gen_ai.response.finish_reasons"] = [call.answer.finish]
    if call.answer.usage is not None:
        found |= _usage(call.answer.usage)
    elif call.answer.tokens:
        found["gen_ai.usage.output_tokens"] = call.answer.tokens
    return found


def _usage(usage: Usage) -> Attributes:
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }


def of_decision(decision: Decision) -> Attributes:
    """Who answers, and why."""
    name, version = decision.answered_by
    found: Attributes = {
        "lora_router.adapter.name": name,
        "lora_router.adapter.version": version,
        "lora_router.adapter.digest": decision.digest,
        "lora_router.decision.reason": decision.reason.value,
        "lora_router.decision.confidence": decision.confidence,
        "lora_router.decision.threshold": decision.threshold,
        "lora_router.decision.classifier": decision.classifier,
        "lora_router.experiment.name": decision.experiment,
        "lora_router.experiment.arm": decision.arm,
    }
    if decision.mixture:
        found["lora_router.adapter.mixture"] = [str(part) for part in decision.mixture]
    return {key: value for key, value in found.items() if value != ""}


def of_vote(vote: Vote) -> Attributes:
    """Of the event that a classifier is in the span of routing."""
    verdict = vote.error.value if vote.error else "declined" if vote.declined else "scored"
    return {
        "lora_router.classifier.name": vote.classifier,
        "lora_router.classifier.seconds": vote.latency,
        "lora_router.classifier.verdict": verdict,
    }


def of_exposure(exposed: Exposed) -> Attributes:
    """Of the event of an exposure. Its unit is a hash, as in the experiments' own store."""
    found: Attributes = {
        "feature_flag.key": exposed.experiment,
        "feature_flag.provider.name": PROVIDER,
        "feature_flag.result.variant": exposed.arm,
        "feature_flag.result.reason": "error" if exposed.degraded else "split",
        "feature_flag.context.id": exposed.unit,
        "feature_flag.version": str(exposed.phase),
    }
    if exposed.degraded:
        found["error.type"] = exposed.degraded
    if exposed.stage is not None:
        found["lora_router.stage"] = exposed.stage.value
    return found


def operation_of(request: Request | None) -> str:
    """By the conventions: a raw prompt is completed, turns are a chat."""
    return "chat" if request is None or request.raw_prompt is None else "text_completion"


def model_of(decision: Decision) -> str:
    """Who answered, as `model` would say it over HTTP."""
    return str(decision.adapter) if decision.adapter else decision.answered_by[0]


def failed_by_server(call: Call, code: str) -> bool:
    """Whether the span of a call that ended with that code is one of an error. Over HTTP a status below 500
    is none, unless the answer had begun."""
    refused = call.transport == HTTP and 400 <= call.status < 500
    return code in SERVER_ERRORS and not refused


QUEUE, PREFILL, DECODE = "queue", "prefill", "decode"
WITH_QUEUE, WITH_PREFILL = "lora_router.includes_queue", "lora_router.includes_prefill"
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SpanOrigin:
    """The server's own span, and the one that it was called in; None where it began the trace."""

    context: SpanContext
    parent: SpanContext | None


def _in_engine(call: Call, now: float, reason: str) -> Iterator[tuple[CallPhase, Attributes]]:
    """From its submission on."""
    at, usage, first = call.answer.submitted, call.answer.usage, call.answer.first_token
    if not at:
        return
    if usage is not None:
        whole = usage.completion_tokens > 0
        started, end = at + usage.queue_time, at + usage.total_time
        token = at + usage.time_to_first_token if whole else end
        yield CallPhase(QUEUE, at, started), {}
        yield CallPhase(PREFILL, started, token), {}
        if whole:
            yield CallPhase(DECODE, token, end), {}
    elif first:
        yield CallPhase(PREFILL, at, first), {WITH_QUEUE: True}
        yield CallPhase(DECODE, first, now, reason), {}
    else:
        yield CallPhase(QUEUE, at, now, reason), {WITH_PREFILL: True}


class Maker:
    """Makes OpenTelemetry's spans. One for a process."""

    def __init__(self, resource: Resource, scope: InstrumentationScope, ids: IdGenerator) -> None:
        self._resource, self._scope, self._ids = resource, scope, ids

    def spans(self, call: Call, origin: SpanOrigin, code: str, reason: str) -> list[ReadableSpan]:
        """Of a call that has ended, its own first. Nothing of its prompt or answer is in them."""
        now = time.monotonic()
        offset = time.time_ns() - int(now * NANOSECONDS)

        def at(seconds: float) -> int:
            """Unix nanoseconds, of `time.monotonic()` seconds."""
            return int(seconds * NANOSECONDS) + offset

        own = origin.context
        error = (reason or code) if failed_by_server(call, code) else ""
        made = ReadableSpan(
            name_of(call),
            own,
            origin.parent,
            self._resource,
            of_call(call, code, reason),
            [
                Event(EXPOSURE, of_exposure(one), timestamp=int(one.time * NANOSECONDS))
                for one in call.answer.exposures
            ],
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, error) if error else Status(),
            start_time=at(call.started),
            end_time=at(now),
            instrumentation_scope=self._scope,
        )
        phases = (*((phase, {}) for phase in call.answer.phases), *_in_engine(call, now, reason or code))
        return [made, *(self._child(own, phase, values, call.answer.votes, at) for phase, values in phases)]

    def _child(
        self,
        own: SpanContext,
        phase: CallPhase,
        values: Attributes,
        votes: Sequence[Vote],
        at: Callable[[float], int],
    ) -> ReadableSpan:
        end = at(phase.ended)
        shown = votes if phase.name == ROUTE else ()
        return ReadableSpan(
            phase.name,
            SpanContext(own.trace_id, self._ids.generate_span_id(), False, own.trace_flags, own.trace_state),
            own,
            self._resource,
            {**values, "error.type": phase.failed} if phase.failed else values,
            [Event("lora_router.classifier", of_vote(vote), timestamp=end) for vote in shown],
            kind=SpanKind.INTERNAL,
            start_time=at(phase.began),
            end_time=end,
            instrumentation_scope=self._scope,
        )
