"""The only code that knows both proto messages and `router.types`: requests in, answers and adapters out.

Every bad field of a request is named in one InvalidRequest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from router.engine.base import Delta
from router.engine.constrained.source import check_size
from router.errors import Findings
from router.judging import REFERENCE
from router.names import BASE, adapter_rule, split_adapter
from router.server.mixtures import mixture_messages, mixture_of
from router.server.status import redacted
from router.types import (
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_STOP_BYTES,
    MAX_STOPS,
    SAMPLING_RANGES,
    AdapterEvent,
    AdapterEventKind,
    AdapterInfo,
    AdapterState,
    Constraint,
    Continuity,
    Decision,
    FinishReason,
    Override,
    Reason,
    Request,
    Role,
    RoutingHints,
    Sampling,
    TokenLogprob,
    Turn,
    Usage,
    Vote,
)
from router.v1 import adapters_pb2 as adapters_pb
from router.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from router.plugins import PluginStatus

# What a request may have at most, beside what the settings say.
MAX_LABEL_BYTES, MAX_REFERENCE_BYTES, MAX_HINT_BYTES, MAX_UNIT_BYTES = 64, 4096, 64, 256
ROLES: Mapping[int, Role] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
}

CONTINUITY: Mapping[int, Continuity | Literal[""]] = {
    pb.CONTINUITY_UNSPECIFIED: "",
    pb.CONTINUITY_ADAPTIVE: "adaptive",
    pb.CONTINUITY_STICKY: "sticky",
    pb.CONTINUITY_NONE: "none",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings let a request have at most."""

    max_prompt_bytes: int
    max_tokens: int


def generate_request(
    message: pb.GenerateRequest | pb.StreamGenerateRequest, response_id: str, limits: Limits
) -> Request:
    """A request for an answer, which will have that id."""
    found = Findings()
    request = _input(message.input, response_id, limits, found)
    request = replace(
        request,
        sampling=sampling_of(message.sampling, limits.max_tokens, found),
        routing=_hints(message.routing, found),
        labels=_labels(message.labels, found),
    )
    found.check()
    return request


def route_request(
    message: pb.RouteRequest | pb.CountTokensRequest, response_id: str, limits: Limits
) -> Request:
    """A request for a decision or a count."""
    found = Findings()
    request = replace(
        _input(message.input, response_id, limits, found), routing=_hints(message.routing, found)
    )
    found.check()
    return request


def _input(message: pb.Input, response_id: str, limits: Limits, found: Findings) -> Request:
    kind = message.WhichOneof("input")
    if kind is None:
        found.add("input", "one of text, chat and raw_prompt must be set")
        return Request(response_id)
    if kind == "chat":
        return Request(response_id, turns=_turns(message.chat, limits, found))
    text: str = getattr(message, kind)
    if not text.strip():
        found.add(f"input.{kind}", "must not be empty")
    found.text(f"input.{kind}", text, limits.max_prompt_bytes)
    if kind == "raw_prompt":
        return Request(response_id, raw_prompt=text)
    return Request(response_id, turns=(Turn("user", text),))


def _turns(chat: pb.Chat, limits: Limits, found: Findings) -> tuple[Turn, ...]:
    count = len(chat.messages)
    if not 1 <= count <= MAX_MESSAGES:
        found.add("input.chat.messages", f"must have 1 to {MAX_MESSAGES} entries, got {count}")
        return ()
    turns = tuple(_turn(message, i, found) for i, message in enumerate(chat.messages))
    if turns[-1].role != "user":
        found.add(f"input.chat.messages[{count - 1}].role", "the last message must be the user's")
    if sum(len(turn.text.encode()) for turn in turns) > limits.max_prompt_bytes:
        found.add(
            "input.chat.messages", f"must have at most {limits.max_prompt_bytes} bytes of text together"
        )
    return turns


def _turn(message: pb.ChatMessage, index: int, found: Findings) -> Turn:
    field = f"input.chat.messages[{index}]"
    role = ROLES.get(message.role)
    if role is None:
        found.add(f"{field}.role", "must be ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT")
    if role == "system" and index > 0:
        found.add(f"{field}.role", "ROLE_SYSTEM is allowed only for the first message")
    if not message.text.strip():
        found.add(f"{field}.text", "must not be empty")
    return Turn(role or "user", message.text)


def _hints(message: pb.Routing, found: Findings) -> RoutingHints:
    if message.adapter not in ("", BASE) and split_adapter(message.adapter) is None:
        found.add("routing.adapter", adapter_rule(message.adapter))
    return RoutingHints(
        adapter=message.adapter,
        domain=found.text("routing.domain", message.domain, MAX_HINT_BYTES),
        task=found.text("routing.task", message.task, MAX_HINT_BYTES),
        unit=found.text("routing.unit", message.unit, MAX_UNIT_BYTES),
        explain=message.explain,
        mixture=mixture_of(message, found),
        conversation=found.text("routing.conversation", message.conversation, MAX_UNIT_BYTES),
        continuity=_continuity(message.continuity, found),
        fresh=message.fresh,
    )


def _continuity(value: pb.Continuity, found: Findings) -> Continuity | Literal[""]:
    known = CONTINUITY.get(value)
    if known is None:
        found.add("routing.continuity", "must be CONTINUITY_ADAPTIVE, CONTINUITY_STICKY or CONTINUITY_NONE")
    return known or ""


def _labels(labels: Mapping[str, str], found: Findings) -> dict[str, str]:
    if len(labels) > MAX_LABELS:
        found.add("labels", f"must have at most {MAX_LABELS} entries, got {len(labels)}")
        return {}
    for key, value in labels.items():
        found.text("labels", key, MAX_LABEL_BYTES)
        most = MAX_REFERENCE_BYTES if key == REFERENCE else MAX_LABEL_BYTES
        found.text(f"labels[{key[:MAX_LABEL_BYTES]}]", value, most)
        if not key:
            found.add("labels", "keys must not be empty")
    return dict(labels)


# -- Sampling: each field that was said is checked against the range in the proto's comments.


def sampling_of(message: pb.Sampling, max_tokens_limit: int, found: Findings) -> Sampling:
    """What the caller said; a field that was not said stays None, an explicit 0 stays 0."""
    said: dict[str, float | int] = {}
    for field, allowed in SAMPLING_RANGES.items():
        if not message.HasField(field):
            continue
        if field in ("max_tokens", "min_tokens"):
            allowed = replace(allowed, high=max_tokens_limit)
        said[field] = value = getattr(message, field)
        if not math.isfinite(value):
            found.add(f"sampling.{field}", "must be a finite number")
        elif value not in allowed:
            found.add(f"sampling.{field}", f"must be in {allowed}, got {value:g}")
    if "max_tokens" in said and said.get("min_tokens", 0) > said["max_tokens"] >= 1:
        found.add("sampling.min_tokens", "must not be more than max_tokens")
    stop, constraint = _stops(message.stop, found), constraint_of(message, found)
    return Sampling(stop=stop, constraint=constraint, **said)  # type: ignore[arg-type]  # the proto fixes int or float for each


def constraint_of(message: pb.Sampling, found: Findings) -> Constraint | None:
    """What the answer must look like; what is wrong inside is found when the engine compiles it."""
    kind = message.WhichOneof("constraint")
    if kind is None:
        return None
    if kind == "unconstrained":
        return Constraint(kind) if message.unconstrained else None
    if kind == "choices":
        made = Constraint(kind, choices=tuple(message.choices.values))
    else:
        made = Constraint(kind, getattr(message, kind))
    field = "sampling.choices.values" if kind == "choices" else f"sampling.{kind}"
    check_size(made, field, found)
    return made


def _stops(stops: Iterable[str], found: Findings) -> tuple[str, ...] | None:
    strings = tuple(stops)
    if len(strings) > MAX_STOPS:
        found.add("sampling.stop", f"must have at most {MAX_STOPS} entries, got {len(strings)}")
        return None
    for i, stop in enumerate(strings):
        if not stop:
            found.add(f"sampling.stop[{i}]", "must not be empty")
        found.text(f"sampling.stop[{i}]", stop, MAX_STOP_BYTES)
    return strings or None


# -- Answers.

REASONS = {
    Reason.EXPLICIT: pb.DECISION_REASON_EXPLICIT,
    Reason.HINT: pb.DECISION_REASON_HINT,
    Reason.CLASSIFIED: pb.DECISION_REASON_CLASSIFIED,
    Reason.ABSTAINED: pb.DECISION_REASON_ABSTAINED,
    Reason.FALLBACK: pb.DECISION_REASON_FALLBACK,
    Reason.UNFAMILIAR: pb.DECISION_REASON_UNFAMILIAR,
}
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def delta_message(delta: Delta) -> pb.StreamGenerateResponse:
    """Text of one step; on the path of every token, so nothing is built that is empty."""
    message = pb.Delta(text=delta.text, tokens=delta.tokens)
    if delta.logprobs:
        message.logprobs.extend(logprob_messages(delta.logprobs))
    return pb.StreamGenerateResponse(delta=message)


def started_message(response_id: str, decision: Decision, explain: bool) -> pb.StreamGenerateResponse:
    """The first event of a stream."""
    started = pb.Started(response_id=response_id, decision=decision_message(decision, explain))
    return pb.StreamGenerateResponse(started=started)


def finished_message(reason: FinishReason, usage: Usage) -> pb.StreamGenerateResponse:
    """The last event of a stream."""
    finished = pb.Finished(reason=FINISH_REASONS[reason], usage=usage_message(usage))
    return pb.StreamGenerateResponse(finished=finished)


def decision_message(decision: Decision, explain: bool) -> pb.Decision:
    """The decision, with the votes if `explain`."""
    return pb.Decision(
        adapter=decision.adapter.resource if decision.adapter else "",
        digest=decision.digest,
        domain=decision.domain,
        task=decision.task,
        confidence=decision.confidence,
        classifier=decision.classifier,
        reason=REASONS[decision.reason],
        threshold=decision.threshold,
        votes=map(_vote, decision.votes) if explain else (),
        experiment="" if decision.secret else decision.experiment,
        arm="" if decision.secret else decision.arm,
        route_latency=duration(decision.latency),
        calibration=decision.calibration,
        note=decision.note,
        continuity=decision.continuity,
        previous=f"adapters/{decision.previous}"
        if decision.previous not in ("", BASE)
        else decision.previous,
        mixture=mixture_messages(decision.mixture),
        votes_lost=[
            pb.LostVote(classifier=lost.classifier, reason=lost.reason.value) for lost in decision.votes_lost
        ],
    )


def _vote(vote: Vote) -> pb.Vote:
    return pb.Vote(
        classifier=vote.classifier,
        scores=dict(vote.scores),
        declined=vote.declined,
        error=redacted(vote.error),
        latency=duration(vote.latency),
        evidence=vote.evidence,
    )


def usage_message(usage: Usage) -> pb.Usage:
    """Tokens and times."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queue_time=duration(usage.queue_time),
        time_to_first_token=duration(usage.time_to_first_token),
        total_time=duration(usage.total_time),
    )


def logprob_messages(logprobs: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    """One message a token."""
    return [
        pb.TokenLogprob(
            token=entry.token,
            token_id=entry.token_id,
            logprob=entry.logprob,
            top=[
                pb.TokenLogprob.Alternative(token=token, token_id=token_id, logprob=logprob)
                for token, token_id, logprob in entry.top
            ],
        )
        for entry in logprobs
    ]


# -- Adapters and their lifecycle events.

STATES = {
    AdapterState.DISCOVERED: adapters_pb.Adapter.STATE_DISCOVERED,
    AdapterState.LOADING: adapters_pb.Adapter.STATE_LOADING,
    AdapterState.READY: adapters_pb.Adapter.STATE_READY,
    AdapterState.OFFLOADED: adapters_pb.Adapter.STATE_OFFLOADED,
    AdapterState.QUARANTINED: adapters_pb.Adapter.STATE_QUARANTINED,
}
KINDS = {
    AdapterEventKind.ADDED: adapters_pb.WatchAdaptersResponse.KIND_ADDED,
    AdapterEventKind.CHANGED: adapters_pb.WatchAdaptersResponse.KIND_CHANGED,
    AdapterEventKind.REMOVED: adapters_pb.WatchAdaptersResponse.KIND_REMOVED,
}


def adapter_message(info: AdapterInfo, etag: str) -> adapters_pb.Adapter:
    """One adapter version."""
    return adapters_pb.Adapter(
        name=info.ref.resource,
        version=info.ref.version,
        digest=info.digest,
        domain=info.domain,
        task=info.task,
        description=info.description,
        base_model=info.base_model,
        rank=info.rank,
        target_modules=info.target_modules,
        invocation_tokens=info.invocation_tokens,
        size_bytes=info.size_bytes,
        state=STATES[info.state],
        default=info.default,
        pinned=info.pinned,
        leases=info.leases,
        last_used=None if info.last_used is None else timestamp(info.last_used),
        error=redacted(info.error, files=True),
        notes=[redacted(note, files=True) for note in info.notes],
        etag=etag,
        routable=info.routable,
        routing=redacted(info.routing, files=True),
        gate=redacted(info.gate, files=True),
        gate_advice=redacted(info.gate_advice, files=True),
        override=None if info.override is None else _override(info.override),
        carried=info.carried,
    )


def _override(override: Override) -> adapters_pb.Adapter.Override:
    return adapters_pb.Adapter.Override(
        by=override.by,
        time=timestamp(override.time),
        reason=override.reason,
        finding=redacted(override.finding, files=True),
        weights_sha256=override.weights_sha256,
    )


def plugin_message(plugin: PluginStatus, everything: bool) -> adapters_pb.Plugin:
    """One plugin. Faults of classifiers and judges may quote adapters: only for who may see `everything`."""

    def shown(problem: str) -> str:
        return redacted(problem, files=True, faults=True) if everything else ""

    return adapters_pb.Plugin(
        name=plugin.name,
        source=plugin.source,
        file=PurePath(plugin.path).name,
        version=plugin.version,
        digest=plugin.digest,
        enabled=plugin.enabled,
        error=redacted(plugin.error, files=True, faults=everything),
        warnings=[redacted(warning, files=True) for warning in plugin.warnings],
        package=plugin.package,
        carried=plugin.carried,
        hooks=plugin.hooks,
        classifiers=[
            adapters_pb.Plugin.Classifier(
                name=one.name,
                priority=one.priority,
                timeout_ms=one.timeout_ms,
                state=one.state,
                breaker=one.breaker,
                requests=one.requests,
                errors=one.errors,
                problem=shown(one.fit_error or one.last_error),
            )
            for one in plugin.classifiers
        ],
        judges=[
            adapters_pb.Plugin.Judge(
                name=one.name, timeout_ms=one.timeout_ms, breaker=one.breaker, problem=shown(one.last_error)
            )
            for one in plugin.judges
        ],
    )


def event_message(event: AdapterEvent, etag: str) -> adapters_pb.WatchAdaptersResponse:
    """One lifecycle event."""
    return adapters_pb.WatchAdaptersResponse(
        kind=KINDS[event.kind], adapter=adapter_message(event.adapter, etag), time=timestamp(event.time)
    )


def timestamp(unix_seconds: float) -> Timestamp:
    """A proto timestamp."""
    nanos = round(unix_seconds * 1e9)
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def duration(seconds: float) -> Duration:
    """A proto duration; negative times are 0."""
    nanos = max(round(seconds * 1e9), 0)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
