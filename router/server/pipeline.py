"""The life of a request: route, lease, encode, submit; released whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from router.config import Settings
from router.engine.base import Engine, Finished, Generation, Job, Prompt
from router.errors import DeadlineExceeded, EngineFailed, Unavailable
from router.ports import AdapterRegistry, Lease, RequestRouter
from router.server.fit import fit
from router.server.interceptors.call import Call
from router.types import Decision, FinishReason, PromptTemplate, Request, Sampling

ENCODERS = 4


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request under its adapter, encoded."""

    decision: Decision
    tokens: list[int]
    defaults: Sampling


class Pipeline:
    """What all inference methods share. Nothing here waits for the engine's thread or the disk."""

    def __init__(
        self, settings: Settings, engine: Engine, registry: AdapterRegistry, router: RequestRouter
    ) -> None:
        self._engine, self._registry, self._router = engine, registry, router
        self._max_tokens = settings.max_tokens_limit
        self._encoders = ThreadPoolExecutor(ENCODERS, "encode")

    def close(self) -> None:
        """Let the encoder threads go."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._engine.info.context_length

    async def decide(self, request: Request, call: Call) -> Decision:
        """Where the request goes."""
        call.decision = decision = await self._router.route(request)
        return decision

    @asynccontextmanager
    async def prepare(self, request: Request, call: Call) -> AsyncIterator[Prepared]:
        """Route and encode; the adapter stays resident inside the block."""
        decision = await self.decide(request, call)
        async with self._leased(decision) as lease:
            if lease is not None:
                call.decision = decision = _as_leased(decision, lease)
            template = lease.prompt if lease else PromptTemplate()
            tokens = await self._encode(Prompt(request.turns, request.raw_prompt, template))
            yield Prepared(decision, tokens, lease.generation if lease else Sampling())

    @asynccontextmanager
    async def answer(self, request: Request, call: Call) -> AsyncIterator[tuple[Decision, Generation]]:
        """Admitted by the engine when the block is entered; its row is freed when it is left."""
        async with self.prepare(request, call) as prepared:
            params = fit(
                request.sampling,
                prepared.defaults,
                len(prepared.tokens),
                self.context_length,
                self._max_tokens,
            )
            adapter = prepared.decision.digest if prepared.decision.adapter else None
            generation = self._engine.submit(
                Job(request.request_id, prepared.tokens, params, adapter, request.deadline)
            )
            try:
                yield prepared.decision, generation
            finally:
                generation.cancel()

    @asynccontextmanager
    async def _leased(self, decision: Decision) -> AsyncIterator[Lease | None]:
        if decision.adapter is None:
            yield None
            return
        async with self._registry.lease(decision.adapter) as lease:
            yield lease

    async def _encode(self, prompt: Prompt) -> list[int]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoders, self._engine.encode, prompt)


def _as_leased(decision: Decision, lease: Lease) -> Decision:
    return replace(
        decision,
        digest=lease.digest,
        domain=decision.domain or lease.domain,
        task=decision.task or lease.task,
    )


def completed(event: Finished, call: Call) -> Finished:
    """The end of an answer that is one; raises for an end that is not."""
    call.usage, call.finish = event.usage, event.reason.value
    if event.reason is FinishReason.DEADLINE:
        raise DeadlineExceeded("the deadline passed before the answer was complete")
    if event.reason is FinishReason.CANCELLED:
        raise Unavailable("the engine is stopping")
    if event.reason is FinishReason.ERROR:
        raise EngineFailed("the generation ended with an error")
    return event
