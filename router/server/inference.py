"""InferenceService: proto in, pipeline, proto out; a slow reader gets fewer, longer messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from router.config import Settings
from router.engine.base import Delta, Finished, batches
from router.errors import DeadlineExceeded, EngineFailed, RouterError, Unavailable
from router.ports import AdapterRegistry
from router.server import convert
from router.server.call import Call
from router.server.convert import Limits, generate_request, route_request
from router.server.corrections import record_correction
from router.server.pipeline import Pipeline
from router.types import FinishReason, Request, TokenLogprob
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceServicer

ALL = 1 << 31  # events: more than any answer has


class InferenceService(InferenceServiceServicer):
    """Errors leave as RouterError; the interceptors map them."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        registry: AdapterRegistry,
    ) -> None:
        self._limits = Limits(settings.max_prompt_bytes, settings.max_tokens_limit)
        self._every, self._log_prompts = settings.stream_interval, settings.log_prompts
        self._pipeline, self._registry = pipeline, registry

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """The whole answer in one message."""
        asked = self._asked(generate_request(request, call.response_id, self._limits), call)
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        end = Finished(FinishReason.ERROR)
        async with self._pipeline.answer(asked, call) as (decision, generation):
            try:
                async with aclosing(batches(generation, ALL)) as each:
                    async for batch in each:
                        delta, last = joined(batch)
                        if delta is not None:
                            counted(delta, call)
                            texts.append(delta.text)
                            logprobs.extend(delta.logprobs)
                        end = last or end
            except asyncio.CancelledError:
                with suppress(RouterError):
                    delta, _ = joined(generation.ready())
                    if delta is not None:
                        counted(delta, call)
                raise
            completed(end, call)
        return pb.GenerateResponse(
            response_id=call.response_id,
            text="".join(texts),
            finish_reason=convert.FINISH_REASONS[end.reason],
            usage=convert.usage_message(end.usage),
            decision=convert.decision_message(decision, asked.routing.explain),
            logprobs=convert.logprob_messages(logprobs),
        )

    async def StreamGenerate(self, request: pb.StreamGenerateRequest, call: Call) -> None:
        """Headers and Started once the engine has taken it, then deltas, then Finished."""
        await self.stream(request, call, call.write)

    async def stream(
        self,
        request: pb.StreamGenerateRequest,
        call: Call,
        write: Callable[[pb.StreamGenerateResponse], Awaitable[None]],
    ) -> None:
        """The same, each event given to `write`, which sends it in the form that the caller reads."""
        asked = self._asked(generate_request(request, call.response_id, self._limits), call)
        async with self._pipeline.answer(asked, call) as (decision, generation):
            await call.begin()
            await write(convert.started_message(call.response_id, decision, asked.routing.explain))
            async with aclosing(batches(generation, self._every)) as each:
                async for batch in each:
                    delta, end = joined(batch)
                    if delta is not None:
                        counted(delta, call)
                        await write(convert.delta_message(delta))
                    if end is not None:
                        completed(end, call)
                        await write(convert.finished_message(end.reason, end.usage))

    async def Route(self, request: pb.RouteRequest, call: Call) -> pb.RouteResponse:
        """The decision alone, explained."""
        asked = self._asked(route_request(request, call.response_id, self._limits), call)
        asked = replace(asked, routing=replace(asked.routing, explain=True))
        decision = await self._pipeline.decide(asked, call)
        return pb.RouteResponse(decision=convert.decision_message(decision, explain=True))

    async def CountTokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
        """The length of the prompt under the adapter it would get."""
        asked = self._asked(route_request(request, call.response_id, self._limits), call)
        async with self._pipeline.prepare(asked, call) as prepared:
            return pb.CountTokensResponse(
                prompt_tokens=len(prepared.tokens),
                context_length=self._pipeline.context_length,
                decision=convert.decision_message(prepared.decision, asked.routing.explain),
            )

    async def RecordCorrection(
        self, request: pb.RecordCorrectionRequest, call: Call
    ) -> pb.RecordCorrectionResponse:
        """Durable when it answers."""
        return await record_correction(request, call, self._pipeline.corrections, self._registry)

    def _asked(self, request: Request, call: Call) -> Request:
        call.request, call.labels = request, request.labels
        if self._log_prompts:
            call.prompt = request.text
        call.on_request(call)
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
    call.phases.came(event.tokens)
    if call.meter is not None:
        call.meter.used += event.tokens


def completed(event: Finished, call: Call) -> Finished:
    """The end of an answer that is one; raises for an end that is not."""
    call.usage, call.finish = event.usage, event.reason.value
    if call.meter is not None:
        call.meter.used = event.usage.prompt_tokens + event.usage.completion_tokens
    if event.reason is FinishReason.DEADLINE:
        raise DeadlineExceeded("the deadline passed before the answer was complete")
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
