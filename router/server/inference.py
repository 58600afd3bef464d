"""InferenceService: a message in, the pipeline, a message out; a slow reader gets fewer, longer messages.

Every bad field of a request is named in one InvalidRequest.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from router.config import Settings
from router.conversion import fill, logprob_message
from router.engine.base import Buffered, Delta, Finished, batches
from router.engine.constrained.objects import with_closed_objects
from router.engine.constrained.source import check_size
from router.errors import (
    EngineFailed,
    Findings,
    RouterError,
    Unavailable,
)
from router.names import BASE, adapter_rule, model_asked, split_adapter
from router.ports import AdapterRegistry
from router.server.admission import Admission
from router.server.call import Call
from router.server.inputs import mixture_of, prompt_of
from router.server.labels import label_fields
from router.server.pipeline import Pipeline
from router.server.tool_calls import AnswerWithCalls, CallPiece, Piece
from router.server.tools import forced, named_schemas
from router.types import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_LABELS,
    MAX_STOP_BYTES,
    MAX_STOPS,
    SAMPLING_RANGES,
    Constraint,
    Continuity,
    Decision,
    FinishReason,
    LogitBias,
    Request,
    RoutingHints,
    Sampling,
    TokenLogprob,
    ToolCall,
    Tools,
)
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceServicer

Write = Callable[[pb.StreamGenerateResponse], Awaitable[None]]
EACH, ALL = 1, 1 << 31  # events joined in one message: every step has its own, or more than any answer has
# Texts are at most half of a message: the rest is for schemas, tools and the form around them.
PROMPT_PART = 2


class InferenceService(InferenceServiceServicer):
    """Errors leave as RouterError; the interceptors map them."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        registry: AdapterRegistry,
        admission: Admission,
    ) -> None:
        self._limits = RequestLimits(settings.max_body_bytes // PROMPT_PART, settings.max_tokens_limit)
        self.pipeline, self._registry, self.admission = pipeline, registry, admission

    @property
    def base_digest(self) -> str:
        """Of the base, with the precision of its weights."""
        return self.pipeline.base_digest

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """The whole answer in one message."""
        answer = pb.GenerateResponse()

        async def write(event: pb.StreamGenerateResponse) -> None:
            gather(answer, event)

        await self._answer(request, call, ALL, write)
        return answer

    async def StreamGenerate(self, request: pb.StreamGenerateRequest, call: Call) -> None:
        """Headers and Started once the engine has taken it, then deltas, then Finished."""
        await self.stream(request, call, call.write)

    async def stream(self, request: pb.StreamGenerateRequest, call: Call, write: Write) -> None:
        """The same, each event given to `write`, which sends it in the form that the caller reads."""
        await self._answer(request, call, EACH, write, call.begin)

    async def _answer(
        self,
        request: pb.GenerateRequest | pb.StreamGenerateRequest,
        call: Call,
        every: int,
        write: Write,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        asked = self._asked(generate_request, request, call)
        async with self.answer(asked, call) as (decision, generation):
            if begin is not None:
                await begin()
            await write(started_message(call.response_id, decision, asked.routing.explain))
            await deliver(generation, every, StreamedAnswer(asked.tools), call, write)

    async def Route(self, request: pb.RouteRequest, call: Call) -> pb.RouteResponse:
        """The decision alone, explained."""
        asked = self._asked(route_request, request, call)
        asked = replace(asked, routing=replace(asked.routing, explain=True))
        decision = await self.pipeline.decide(asked, call)
        return pb.RouteResponse(decision=decision_message(decision, explain=True))

    async def CountTokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
        """The length of the prompt under the adapter it would get."""
        asked = self._asked(route_request, request, call)
        async with self.pipeline.prepare(asked, call) as prepared:
            return pb.CountTokensResponse(
                prompt_tokens=len(prepared.tokens),
                context_length=self.pipeline.context_length,
                decision=decision_message(prepared.decision, asked.routing.explain),
            )

    def asked(self, message: pb.GenerateRequest, call: Call) -> Request:
        """The request of a call. Raises InvalidRequest, Overloaded."""
        return self._asked(generate_request, message, call)

    @asynccontextmanager
    async def answer(self, asked: Request, call: Call) -> AsyncIterator[tuple[Decision, Buffered]]:
        """As the pipeline's; errors of the schema of a call name its function."""
        required = asked.tools.choice == "required"
        with named_schemas(asked.tools) if required else nullcontext():
            async with self.pipeline.answer(asked, call) as taken:
                yield taken

    def _asked(self, read: Callable[[Any, str, RequestLimits], Request], message: Any, call: Call) -> Request:
        call.answer.model = model_asked(message.routing)
        request = read(message, call.response_id, self._limits)
        call.answer.request = request
        self.admission.request_known(call)
        return replace(
            request,
            caller_id=call.request_id,
            deadline=call.deadline,
            visible=call.client.adapters,
            tenant=call.client.tenant,
            share=call.client.share,
            experiments=call.client.experiments,
        )


def counted(event: Delta, call: Call) -> None:
    """Tokens that the client has used, whether or not its answer comes to an end."""
    call.answer.came(event.tokens)
    if call.meter is not None:
        call.meter.used += event.tokens


def completed(event: Finished, call: Call) -> Finished:
    """The end of an answer that is one; raises for an end that is not."""
    call.answer.usage, call.answer.finish = event.usage, event.reason.value
    if call.meter is not None:
        call.meter.used = event.usage.prompt_tokens + event.usage.completion_tokens
    if event.reason is FinishReason.DEADLINE:
        raise call.late()
    if event.reason is FinishReason.CANCELLED:
        raise Unavailable("the engine is stopping")
    if event.reason is FinishReason.ERROR:
        raise EngineFailed("the generation ended with an error")
    return event


def joined(batch: Sequence[Delta | Finished]) -> tuple[Delta | None, Finished | None]:
    """One delta that says what all of them say, and the end; None for what is not among them."""
    end = batch[-1] if batch and isinstance(batch[-1], Finished) else None
    deltas = [event for event in batch if isinstance(event, Delta)]
    if len(deltas) < 2:
        return deltas[0] if deltas else None, end
    text = "".join(delta.text for delta in deltas)
    logprobs = tuple(entry for delta in deltas for entry in delta.logprobs)
    return Delta(text, sum(delta.tokens for delta in deltas), logprobs), end


# What a request may have at most, beside what the settings say.
MAX_LABEL_BYTES, MAX_HINT_BYTES, MAX_UNIT_BYTES = 64, 64, 256
CONTINUITY: Mapping[int, Continuity | Literal[""]] = {
    pb.CONTINUITY_UNSPECIFIED: "",
    pb.CONTINUITY_ADAPTIVE: "adaptive",
    pb.CONTINUITY_STICKY: "sticky",
    pb.CONTINUITY_NONE: "none",
}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What the settings let a request have at most."""

    max_prompt_bytes: int
    max_tokens: int


def generate_request(
    message: pb.GenerateRequest | pb.StreamGenerateRequest, response_id: str, limits: RequestLimits
) -> Request:
    """A request for an answer, which will have that id."""
    found = Findings()
    turns, raw_prompt, tools = prompt_of(message.input, limits.max_prompt_bytes, found)
    sampling = sampling_of(message.sampling, limits.max_tokens, found)
    request = Request(
        response_id,
        turns,
        raw_prompt,
        sampling=forced(sampling, tools, found) if tools.choice == "required" else sampling,
        routing=_hints(message.routing, found),
        labels=_labels(message.labels, found),
        tools=tools,
        want_labels=message.want_labels if message.HasField("want_labels") else None,
    )
    found.check()
    return request


def route_request(
    message: pb.RouteRequest | pb.CountTokensRequest, response_id: str, limits: RequestLimits
) -> Request:
    """A request for a decision or a count."""
    found = Findings()
    turns, raw_prompt, tools = prompt_of(message.input, limits.max_prompt_bytes, found)
    request = Request(response_id, turns, raw_prompt, routing=_hints(message.routing, found), tools=tools)
    found.check()
    return request


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
        found.text(f"labels[{key[:MAX_LABEL_BYTES]}]", value, MAX_LABEL_BYTES)
        if not key:
            found.add("labels", "keys must not be empty")
    return dict(labels)


# -- Sampling: each given field is checked against the range in the proto's comments.


def sampling_of(message: pb.Sampling, max_tokens_limit: int, found: Findings) -> Sampling:
    """What the caller sets; a field that is not set stays None, an explicit 0 stays 0."""
    given: dict[str, float | int] = {}
    for field, allowed in SAMPLING_RANGES.items():
        if not message.HasField(field):
            continue
        if field in ("max_tokens", "min_tokens"):
            allowed = replace(allowed, high=max_tokens_limit)
        given[field] = value = getattr(message, field)
        if not math.isfinite(value):
            found.add(f"sampling.{field}", "must be a finite number")
        elif value not in allowed:
            found.add(f"sampling.{field}", f"must be in {allowed}, got {value:g}")
    if "max_tokens" in given and given.get("min_tokens", 0) > given["max_tokens"] >= 1:
        found.add("sampling.min_tokens", "must not be more than max_tokens")
    stop, constraint = _stops(message.stop, found), constraint_of(message, found)
    bias = _logit_bias(message.logit_bias, found)
    return Sampling(stop=stop, constraint=constraint, logit_bias=bias, **given)  # type: ignore[arg-type]  # the proto fixes int or float for each


def _logit_bias(biases: Mapping[int, float], found: Findings) -> LogitBias | None:
    if len(biases) > MAX_BIASES:
        found.add("sampling.logit_bias", f"must have at most {MAX_BIASES} entries, got {len(biases)}")
        return None
    for token, bias in biases.items():
        if not abs(bias) <= MAX_BIAS:  # nor NaN
            text = f"must be in [{-MAX_BIAS:g}, {MAX_BIAS:g}], got {bias:g}"
            found.add(f"sampling.logit_bias[{token}]", text)
    return tuple(sorted(biases.items())) or None


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
        made = with_closed_objects(Constraint(kind, getattr(message, kind)))
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


def delta_message(delta: Delta) -> pb.StreamGenerateResponse:
    """Text of one step; on the path of every token, so nothing is built that is empty."""
    message = pb.Delta(text=delta.text, tokens=delta.tokens)
    if delta.logprobs:
        message.logprobs.extend(map(logprob_message, delta.logprobs))
    return pb.StreamGenerateResponse(delta=message)


class StreamedAnswer(AnswerWithCalls):
    """The events of an answer. Tokens whose text is held back count with the next event."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._plain = not tools.callable
        self._tokens = 0
        self._logprobs: list[TokenLogprob] = []

    def events(self, delta: Delta | None, end: Finished | None) -> Iterator[pb.StreamGenerateResponse]:
        """What became certain with the text of a step, or with the end."""
        if self._plain:
            if delta is not None:
                yield delta_message(delta)
        else:
            yield from self._divided(delta, end)
        if end is not None:
            if self._plain:
                self.end(end.reason)
            yield finished_message(self.reason, end, self.calls)

    def _divided(self, delta: Delta | None, end: Finished | None) -> Iterator[pb.StreamGenerateResponse]:
        pieces: list[Piece] = []
        if delta is not None:
            self._tokens += delta.tokens
            self._logprobs += delta.logprobs
            pieces += self.push(delta.text)
        if end is not None:
            pieces += self.end(end.reason)
        if not pieces and (end is None or not self._tokens):
            return
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        event = delta_message(Delta(text, self._tokens, tuple(self._logprobs)))
        for piece in pieces:
            if isinstance(piece, CallPiece):
                _add_piece(event.delta, piece)
        self._tokens, self._logprobs = 0, []
        yield event


async def deliver(
    generation: Buffered,
    every: int,
    answer: StreamedAnswer,
    call: Call,
    write: Write,
) -> None:
    """Give each event of an answer to `write`; `every` is that of `batches`. `call` keeps what came, also
    where it is cut off."""
    try:
        async with aclosing(batches(generation, every)) as each:
            await _give(each, answer, call, write)
    except asyncio.CancelledError:
        with suppress(RouterError):
            delta, _ = joined(generation.ready())
            if delta is not None:
                counted(delta, call)
        raise


async def _give(
    each: AsyncIterator[Sequence[Delta | Finished]], answer: StreamedAnswer, call: Call, write: Write
) -> None:
    async for batch in each:
        delta, end = joined(batch)
        if delta is not None:
            counted(delta, call)
        if end is not None:
            completed(end, call)
        for message in answer.events(delta, end):
            await write(message)
        if end is not None:
            call.answer.finish = answer.reason.value


def gather(answer: pb.GenerateResponse, event: pb.StreamGenerateResponse) -> None:
    """Add an event of a stream to the whole answer."""
    kind = event.WhichOneof("event")
    if kind == "started":
        answer.response_id = event.started.response_id
        answer.decision.CopyFrom(event.started.decision)
    elif kind == "delta":
        answer.text += event.delta.text
        answer.logprobs.extend(event.delta.logprobs)
    else:
        answer.finish_reason = event.finished.reason
        answer.usage.CopyFrom(event.finished.usage)
        answer.tool_calls.extend(event.finished.tool_calls)
        answer.labels.extend(event.finished.labels)
        answer.labels_calibrated = event.finished.labels_calibrated


def _add_piece(delta: pb.Delta, piece: CallPiece) -> None:
    """Pieces of one call are one in an event: clients may look at the first of a call alone."""
    if delta.tool_calls and delta.tool_calls[-1].index == piece.index:
        delta.tool_calls[-1].arguments += piece.arguments
    else:
        delta.tool_calls.add(index=piece.index, id=piece.id, name=piece.name, arguments=piece.arguments)


def started_message(response_id: str, decision: Decision, explain: bool) -> pb.StreamGenerateResponse:
    """The first event of a stream."""
    started = pb.Started(response_id=response_id, decision=decision_message(decision, explain))
    return pb.StreamGenerateResponse(started=started)


def finished_message(
    reason: FinishReason, end: Finished, calls: Sequence[ToolCall] = ()
) -> pb.StreamGenerateResponse:
    """The last event of a stream."""
    finished = pb.Finished(**label_fields(end.labels))
    fill(finished, {"reason": reason, "usage": end.usage, "tool_calls": calls})
    return pb.StreamGenerateResponse(finished=finished)


def decision_message(decision: Decision, explain: bool) -> pb.Decision:
    """The decision, with the votes if `explain`."""
    shown = decision if explain else replace(decision, votes=())
    return fill(pb.Decision(), replace(shown, experiment="", arm="") if shown.secret else shown)
