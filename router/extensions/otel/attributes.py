"""A call in OpenTelemetry's names: those of GenAI and RPC where they have one, else `lora_router.*`.

No text of a prompt or an answer, no stop string, no constraint, no label and no address of a caller is here.
"""

from __future__ import annotations

from router.names import AUTO, split_adapter
from router.ports import Exposed
from router.server.call import Call
from router.types import Decision, Request, Usage, Vote

Value = str | bool | int | float | list[str]
Attributes = dict[str, Value]

PROVIDER = "lora_router"
# Codes of gRPC that are the server's fault, by the conventions for RPC.
SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
MOST_NAME = 128  # characters of what a caller calls a model
EXPOSURE = "feature_flag.evaluation"  # the event


def name_of(call: Call) -> str:
    """What its span is called: of few names, whatever callers say."""
    if call.policy.generates:
        operation = operation_of(call.request)
        return f"{operation} {model_asked(call.request)}" if call.decision is not None else operation
    return call.method.removeprefix("/")


def of_call(call: Call, code: str, reason: str) -> Attributes:
    """Of the span of a call that has ended."""
    found: Attributes = {"lora_router.request_id": call.request_id}
    if call.transport == "http":
        found["http.request.method"], _, found["http.route"] = call.method.partition(" ")
        found["http.response.status_code"] = call.status
    else:
        found["rpc.system.name"] = "grpc"
        found["rpc.method"] = call.method.removeprefix("/")
        found["rpc.response.status_code"] = code
    if code != "OK":
        found["error.type"] = reason or code
    if call.client.id:
        found["lora_router.client"] = call.client.id
        found["lora_router.tenant"] = call.client.tenant
    if call.policy.generates:
        found |= _generation(call)
    if call.decision is not None:
        found |= of_decision(call.decision)
    return found


def _generation(call: Call) -> Attributes:
    found: Attributes = {
        "gen_ai.operation.name": operation_of(call.request),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model_asked(call.request),
    }
    if call.response_id:
        found["gen_ai.response.id"] = call.response_id
    if call.request is not None:
        said = call.request.sampling
        values = ((name, getattr(said, name)) for name in SAMPLING)
        found |= {f"gen_ai.request.{name}": value for name, value in values if value is not None}
        if said.constraint is not None and said.constraint.kind != "unconstrained":
            found["gen_ai.output.type"] = "json" if said.constraint.kind == "json_schema" else "text"
    if call.decision is not None:
        found["gen_ai.response.model"] = model_of(call.decision)
    if call.finish:
        found["gen_ai.response.finish_reasons"] = [call.finish]
    if call.usage is not None:
        found |= _usage(call.usage)
    elif call.phases.tokens:
        found["gen_ai.usage.output_tokens"] = call.phases.tokens
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
    """Of the event of an exposure. Who it is of is said as the experiments' own store says it: a hash."""
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
    return found


def operation_of(request: Request | None) -> str:
    """By the conventions: a raw prompt is completed, turns are a chat."""
    return "chat" if request is None or request.raw_prompt is None else "text_completion"


def model_asked(request: Request | None) -> str:
    """What the caller asked for, as `model` would say it over HTTP."""
    if request is None:
        return AUTO
    if request.routing.mixture:
        return "mixture"
    named = request.routing.adapter
    parts = split_adapter(named)
    if parts is None:
        return named[:MOST_NAME] or AUTO
    name, version = parts
    return f"{name}@{version}" if version else name


def model_of(decision: Decision) -> str:
    """Who answered, as `model` would say it over HTTP."""
    return str(decision.adapter) if decision.adapter else decision.answered_by[0]


def failed_by_server(code: str) -> bool:
    """Whether the span of a call with that code is one of an error."""
    return code in SERVER_ERRORS
