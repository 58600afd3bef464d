"""The life of a request: route, lease, encode, submit; released whatever happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from router.config import Settings
from router.engine.base import Delta, Engine, Finished, Generation, Job, Prompt
from router.errors import (
    DataLoss,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    FailedPrecondition,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.ports import AdapterRegistry, Assignment, End, Experiments, Lease, RequestRouter, Served, Watcher
from router.server.call import Call
from router.types import (
    AdapterRef,
    Decision,
    FinishReason,
    PromptTemplate,
    Request,
    Sampling,
    SamplingParams,
    Usage,
)

# Sampling as the engine gets it: layers merged, and prompt and answer made to fit the context.


def fit(said: Sampling, adapter: Sampling, prompt_tokens: int, context: int, most: int) -> SamplingParams:
    """What the caller said, else the adapter's defaults, else the server's.

    A max_tokens the caller said must fit beside the prompt in `context` tokens, else PromptTooLong; one that
    was not said becomes what fits, at most `most`. A prompt is never cut.
    """
    params = SamplingParams.of(said, adapter)
    room = context - prompt_tokens
    needed = said.max_tokens or max(said.min_tokens or 0, 1)
    if needed > room:
        raise PromptTooLong(context, prompt_tokens + needed)
    max_tokens = said.max_tokens or min(max(params.max_tokens, needed), most, room)
    return replace(params, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens))


# A generation that tells its watchers when it begins and how it ends.


log = logging.getLogger(__name__)


class Watched:
    """The `Generation` protocol around another; `end` must be called once, whatever happened.

    A watcher that raises is logged, and changes nothing for the user.
    """

    def __init__(self, generation: Generation, watchers: Sequence[Watcher]) -> None:
        self._generation, self._watchers = generation, watchers
        self._submitted = time.monotonic()
        self._first = 0.0
        self._began = False
        self._texts: list[str] = []
        self._tokens = 0
        self._finished: Finished | None = None

    async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        """The same events."""
        try:
            async for event in self._generation:
                if isinstance(event, Delta):
                    self._begin()
                    self._texts.append(event.text)
                    self._tokens += event.tokens
                else:
                    self._finish(event)
                yield event
        except EngineFailed:
            self._begin()  # the step that failed was its own
            raise

    def cancel(self) -> None:
        """Ask the engine to drop it."""
        self._generation.cancel()

    def end(self, error: BaseException | None, stopped: str = "") -> None:
        """Tell the watchers. A cancellation is the user's unless `stopped` names another reason."""
        finished, failed = self._finished, ""
        left = isinstance(error, asyncio.CancelledError) and not stopped
        if error is not None and not left:
            failed = stopped or (error.reason if isinstance(error, RouterError) else type(error).__name__)
        if finished is not None and finished.reason in (FinishReason.STOP, FinishReason.LENGTH):
            left, failed = False, ""  # all was there; what came after is not the answer's
        whole = finished is not None and not failed
        end = End(
            finished.reason if finished is not None and whole else None,
            "".join(self._texts),
            finished.usage if finished is not None else self._so_far(),
            failed,
            left,
        )
        self._each(lambda watcher: watcher.ended(end))

    def _begin(self) -> None:
        if self._began:
            return
        self._began, self._first = True, time.monotonic()
        self._each(lambda watcher: watcher.began())

    def _each(self, tell: Callable[[Watcher], None]) -> None:
        for watcher in self._watchers:
            try:
                tell(watcher)
            except Exception:
                log.exception("a watcher failed; the answer goes on")

    def _finish(self, event: Finished) -> None:
        self._finished = event
        if event.usage.completion_tokens or event.reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._begin()  # an answer may be one token that has no text

    def _so_far(self) -> Usage:
        now = time.monotonic()
        return Usage(
            completion_tokens=self._tokens,
            time_to_first_token=(self._first or now) - self._submitted,
            total_time=now - self._submitted,
        )


# From a request to who answers it: the arm of its experiment, and what stands in if the arm cannot.


FAULTS = (NotFound, FailedPrecondition, DataLoss)  # of the version: gone, quarantined, damaged
TOO_LARGE = (ResourceExhausted, PromptTooLong)  # the request, for this version's template; not for another's
REST_SECONDS = 5.0  # an arm's version that could not answer is left alone for so long
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to answer. `degraded` is the reason of the error that kept the arm from it."""

    decision: Decision
    assignment: Assignment | None = None
    degraded: str = ""


class Arms:
    """Routing and experiments together, as the pipeline sees them."""

    def __init__(
        self, router: RequestRouter, registry: AdapterRegistry, experiments: Experiments | None = None
    ) -> None:
        self._router, self._registry, self._experiments = router, registry, experiments
        self._resting: dict[AdapterRef, tuple[float, RouterError]] = {}

    async def serve(
        self, request: Request, call: Call, attempt: Callable[[Choice], Awaitable[T]], counted: bool = False
    ) -> tuple[Choice, T]:
        """The first choice for which `attempt` works, and what came of it.

        The arm's version is tried first, then control's, then the one that routing chose: a user of an arm
        sees no error that a user of control would not have seen. `counted`: an answer will be generated.
        """
        decision, assignment = await self._routed(request, counted)
        call.decision = decision
        if assignment is None or not assignment.versions:
            choice = Choice(decision, assignment)
            return choice, await attempt(choice)
        *before, last = dict.fromkeys((*assignment.versions, decision.adapter))
        degraded = ""
        for ref in before:
            try:
                self._check(ref)
                choice = Choice(self._placed(decision, ref), assignment, degraded)
                call.decision = choice.decision
                return choice, await attempt(choice)
            except FAULTS as error:
                degraded = degraded or error.reason
                self._rest(ref, error)
            except TOO_LARGE as error:  # says nothing of the next request
                degraded = degraded or error.reason
        choice = Choice(self._placed(decision, last), assignment, degraded)
        call.decision = choice.decision
        return choice, await attempt(choice)

    async def lease(self, held: AsyncExitStack, ref: AdapterRef) -> Lease:
        """A lease for as long as `held` is open. A version that there is no memory to load for rests."""
        try:
            return await held.enter_async_context(self._registry.lease(ref))
        except ResourceExhausted as error:
            self._rest(ref, error)
            raise

    async def _routed(self, request: Request, counted: bool) -> tuple[Decision, Assignment | None]:
        """With the experiment's and the arm's name in the decision."""
        live = self._experiments
        if live is None or not live.running:
            return await self._router.route(request), None
        return await live.choose(request, self._router, counted)

    def _placed(self, decision: Decision, ref: AdapterRef | None) -> Decision:
        """The decision with that version. Raises AdapterNotFound, FailedPrecondition (quarantined)."""
        if ref == decision.adapter:
            return decision
        if ref is None:
            return replace(decision, adapter=None, digest="", domain="", task="")
        info = self._registry.resolve(ref.name, ref.version)
        return replace(decision, adapter=ref, digest=info.digest, domain=info.domain, task=info.task)

    def _check(self, ref: AdapterRef | None) -> None:
        """Raise again what a version failed with a moment ago."""
        if ref is None or ref not in self._resting:
            return
        until, error = self._resting[ref]
        if time.monotonic() < until:
            raise error.with_traceback(None)
        del self._resting[ref]

    def _rest(self, ref: AdapterRef | None, error: RouterError) -> None:
        if ref is not None and ref not in self._resting:
            self._resting[ref] = (time.monotonic() + REST_SECONDS, error)


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
