"""InferenceService: a message in, the pipeline, a message out; a slow reader gets fewer, longer messages.

Every bad field of a request is named in one InvalidRequest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from router.config import Settings
from router.conversion import fill, logprob_message
from router.engine.base import Buffered, Delta, Finished, batches
from router.errors import (
    EngineFailed,
    RouterError,
    Unavailable,
)
from router.names import model_asked
from router.ports import AdapterRegistry
from router.server.admission import Admission
from router.server.call import Call
from router.server.pipeline import Pipeline
from router.server.requests import RequestLimits, generate_request, route_request
from router.server.tools import AnswerWithCalls, CallPiece, Piece, named_schemas
from router.types import (
    Decision,
    FinishReason,
    LabelProbabilities,
    Request,
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


def label_fields(labels: LabelProbabilities | None) -> dict[str, Any]:
    """Fields of GenerateResponse and Finished."""
    if labels is None:
        return {}
    values = [pb.Label(text=text, probability=probability) for text, probability in labels.values]
    return {"labels": values, "labels_calibrated": labels.calibrated}
