"""The life of a request: route, lease, encode, submit; released whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from router.config import Settings
from router.engine.base import Delta, Engine, Finished, Generation, Job, Prompt
from router.errors import DeadlineExceeded, Draining, EngineFailed, Unavailable
from router.ports import AdapterRegistry, Experiments, Lease, RequestRouter, Served, Watcher
from router.server.arms import Arms, Choice
from router.server.fit import fit
from router.server.interceptors.call import Call
from router.server.watched import Watched
from router.types import Decision, FinishReason, PromptTemplate, Request, Sampling, SamplingParams

ENCODERS = 4


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request under its adapter, encoded."""

    decision: Decision
    tokens: list[int]
    defaults: Sampling


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request that the engine has taken."""

    decision: Decision
    params: SamplingParams
    generation: Generation


class Pipeline:
    """What all inference methods share. Nothing here waits for the engine's thread or the disk."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        registry: AdapterRegistry,
        router: RequestRouter,
        experiments: Experiments | None = None,
    ) -> None:
        self._engine = engine
        self._experiments, self._arms = experiments, Arms(router, registry, experiments)
        self._max_tokens = settings.max_tokens_limit
        self._encoders = ThreadPoolExecutor(ENCODERS, "encode")
        self.draining = False  # cancelled from now on is cancelled by the server

    def close(self) -> None:
        """Let the encoder threads go."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._engine.info.context_length

    async def decide(self, request: Request, call: Call) -> Decision:
        """Where the request goes, its arm in an experiment included."""
        choice, _ = await self._arms.serve(request, call, _nothing)
        return choice.decision

    @asynccontextmanager
    async def prepare(self, request: Request, call: Call) -> AsyncIterator[Prepared]:
        """Route and encode; the adapter stays resident inside the block."""
        async with AsyncExitStack() as held:
            _, prepared = await self._arms.serve(request, call, partial(self._prepared, held, request))
            call.decision = prepared.decision
            yield prepared

    @asynccontextmanager
    async def answer(self, request: Request, call: Call) -> AsyncIterator[tuple[Decision, Generation]]:
        """Admitted by the engine when the block is entered; its row is freed when it is left."""
        async with AsyncExitStack() as held:
            attempt = partial(self._submitted, held, request)
            choice, taken = await self._arms.serve(request, call, attempt, counted=True)
            call.decision = taken.decision
            try:
                watchers = self._watchers(request, choice, taken)
                if not watchers:
                    yield taken.decision, taken.generation
                    return
                watched = Watched(taken.generation, watchers)
                async with self._told(watched, call):
                    yield taken.decision, watched
            finally:
                taken.generation.cancel()

    async def complete(self, request: Request, decision: Decision) -> AsyncGenerator[Delta | Finished, None]:
        """Events of an answer that no user waits for: the same request as `decision` would have it answered.

        It runs in the background of the engine. Raises what leasing, encoding and submitting raise, at the
        first event.
        """
        async with AsyncExitStack() as held:
            taken = await self._submitted(held, request, Choice(decision), background=True)
            try:
                async for event in taken.generation:
                    yield event
            finally:
                taken.generation.cancel()

    @asynccontextmanager
    async def _told(self, watched: Watched, call: Call) -> AsyncIterator[None]:
        """The watchers hear of the end, whichever it is."""
        try:
            yield
        except BaseException as error:
            watched.end(error, self._stopped(call))
            raise
        watched.end(None)

    def _stopped(self, call: Call) -> str:
        """Why a cancellation would not be the user's."""
        if call.expired:
            return DeadlineExceeded.reason
        return Draining.reason if self.draining else ""

    def _watchers(self, request: Request, choice: Choice, taken: Submitted) -> Sequence[Watcher]:
        live = self._experiments
        if live is None or not live.running:
            return ()
        served = Served(request, taken.decision, taken.params, choice.assignment, choice.degraded)
        return live.watchers(served)

    async def _submitted(
        self, held: AsyncExitStack, request: Request, choice: Choice, background: bool = False
    ) -> Submitted:
        """Lease, encode, fit, submit; the lease goes to `held` if all of that works."""
        async with AsyncExitStack() as mine:
            prepared = await self._prepared(mine, request, choice)
            params = fit(
                request.sampling,
                prepared.defaults,
                len(prepared.tokens),
                self.context_length,
                self._max_tokens,
            )
            adapter = prepared.decision.digest if prepared.decision.adapter else None
            job = Job(
                request.request_id,
                prepared.tokens,
                params,
                adapter,
                request.deadline,
                background=background,
            )
            generation = self._engine.submit(job)
            held.push_async_exit(mine.pop_all())
        return Submitted(prepared.decision, params, generation)

    async def _prepared(self, held: AsyncExitStack, request: Request, choice: Choice) -> Prepared:
        """Lease and encode; the lease goes to `held` if both work."""
        decision = choice.decision
        async with AsyncExitStack() as mine:
            lease = None
            if decision.adapter is not None:
                lease = await self._arms.lease(mine, decision.adapter)
                decision = _as_leased(decision, lease)
            template = lease.prompt if lease else PromptTemplate()
            tokens = await self._encode(Prompt(request.turns, request.raw_prompt, template))
            held.push_async_exit(mine.pop_all())
        return Prepared(decision, tokens, lease.generation if lease else Sampling())

    async def _encode(self, prompt: Prompt) -> list[int]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoders, self._engine.encode, prompt)


async def _nothing(choice: Choice) -> None:
    """A decision is all that is wanted."""


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
