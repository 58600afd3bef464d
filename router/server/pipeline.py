"""The life of a request: route, then lease, encode, fit and submit for the first who can answer; released
whatever happens."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from router.access.clients import Client
from router.access.quotas import UsageMeter
from router.config import Settings
from router.engine.base import (
    Ability,
    Buffered,
    Delta,
    Engine,
    Finished,
    Generation,
    Job,
    Prompt,
    buffered,
)
from router.engine.constrained.templates import ConstraintTemplates, source_text
from router.errors import (
    DataLoss,
    DeadlineExceeded,
    Draining,
    FailedPrecondition,
    FieldViolation,
    InvalidRequest,
    NotActivated,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    RouterError,
)
from router.ports import AdapterRegistry, Assignment, End, Experiments, Lease, Served, Watcher
from router.server.call import ENCODE, LEASE, ROUTE, Answer, Call, check_time
from router.server.encoding import Encoding
from router.server.tools import for_untaught
from router.server.watching import how_it_failed, watching
from router.types import (
    EVERYTHING,
    INT64,
    AdapterRef,
    Decision,
    LabelSettings,
    PromptTemplate,
    Reason,
    Request,
    Sampling,
    SamplingParams,
    Usage,
    Visible,
)

if TYPE_CHECKING:
    from router.plugins import Hooks
    from router.routing.router import Router

Begun = Callable[[Request, Decision, Client], Watcher | None]
FAULTS = (NotFound, FailedPrecondition, DataLoss)  # of the version: gone, quarantined, damaged
UNFIT = (ResourceExhausted, PromptTooLong, NotActivated)  # the request for this version; not for another
REST_SECONDS = 5.0
AT_ONCE, FEW_TURNS = 512, 8  # characters and turns of a prompt that is encoded on the event loop
SEED_STEP = 0x9E3779B97F4A7C15  # odd, so that no two samples have the same seed
COUNTED = 1 << 18  # tokens of a prompt that is only counted; the context length where that is more


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request under its adapter, encoded."""

    decision: Decision
    tokens: list[int]
    defaults: Sampling
    labels: LabelSettings  # of the adapter
    shared: int  # of the tokens, those that every prompt under the same template begins with


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request that the engine has taken."""

    decision: Decision
    generation: Generation


class Pipeline:
    """What all inference methods share. Nothing here waits for the engine's thread or the disk.

    `experiments` may be set, and `begun` extended, until the first request.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        registry: AdapterRegistry,
        router: Router,
        experiments: Experiments | None = None,
        hooks: Hooks | None = None,
        templates: ConstraintTemplates | None = None,
    ) -> None:
        self._engine, self._registry, self._router = engine, registry, router
        self.experiments, self._resting = experiments, Resting()
        self._hooks = hooks
        self._templates = templates or ConstraintTemplates()
        self.begun: list[Begun] = []  # called for each answer; a watcher hears how it goes on
        self._max_tokens = settings.max_tokens_limit
        self._encoding = Encoding(lambda prompt, most, check: engine.encode(prompt, most, check))
        self.draining = False  # cancelled from now on is cancelled by the server

    def close(self) -> None:
        """Let the encoder threads go."""
        self._encoding.close()

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._engine.info.context_length

    @property
    def base_digest(self) -> str:
        """Of the base, with the precision of its weights."""
        return self._engine.info.served_digest

    @asynccontextmanager
    async def answer(self, request: Request, call: Call) -> AsyncIterator[tuple[Decision, Buffered]]:
        """Admitted by the engine when the block is entered; its row is freed when it is left."""
        async with AsyncExitStack() as held:
            call.answer.request = request = await self._rewritten(request)
            choices = await self._routed(request, call, counted=True)
            try:
                taken = await self._taken(held, request, choices, call)
            except BaseException as error:
                self._unserved(request, choices, call, error)
                raise
            call.answer.decision = taken.decision
            watchers = self._watchers(request, taken, choices, call)
            watched = watching(watchers, taken.generation, lambda: self._stopped(call))
            yield taken.decision, held.enter_context(watched)

    @asynccontextmanager
    async def another(
        self, request: Request, decision: Decision, call: Call, sample: int
    ) -> AsyncIterator[Buffered]:
        """Sample number `sample` of the answer to a request, as plugins left it, by what gives the first.

        To experiments, feedback and plugins the first answer stands for all.
        """
        async with AsyncExitStack() as held:
            call.answer.decision = decision
            taken = await self._submitted(
                held, request, decision, call.answer, meter=call.meter, sample=sample
            )
            yield buffered(taken.generation)

    async def _taken(
        self, held: AsyncExitStack, request: Request, choices: Candidates, call: Call
    ) -> Submitted:
        """The first choice that the engine takes. Raises what is wrong with the last."""
        for decision in choices:
            call.answer.decision = decision
            try:
                return await self._submitted(held, request, decision, call.answer, meter=call.meter)
            except RouterError as error:
                choices.failed(error)  # raises it unless another can stand in
        raise AssertionError("choices end by raising")

    @asynccontextmanager
    async def prepare(self, request: Request, call: Call) -> AsyncIterator[Prepared]:
        """Route and encode; the adapter stays resident inside the block."""
        async with AsyncExitStack() as held:
            request = await self._rewritten(request)
            choices = await self._routed(request, call, counted=False)
            for decision in choices:
                call.answer.decision = decision
                try:
                    async with AsyncExitStack() as mine:
                        prepared = await self._prepared(mine, request, decision, call.answer)
                        held.push_async_exit(mine.pop_all())
                    break
                except RouterError as error:
                    choices.failed(error)
            call.answer.decision = prepared.decision
            yield prepared

    async def decide(self, request: Request, call: Call) -> Decision:
        """Where the request goes, its arm in an experiment included."""
        request = await self._rewritten(request)
        call.answer.decision = decision = next(iter(await self._routed(request, call, counted=False)))
        return decision

    async def complete(self, request: Request, decision: Decision) -> AsyncGenerator[Delta | Finished, None]:
        """Events of an answer that no user waits for: the same request as `decision` would have it answered.

        It runs in the background of the engine. Raises what leasing, encoding and submitting raise, at the
        first event.
        """
        async with AsyncExitStack() as held:
            taken = await self._submitted(held, request, decision, Answer(), background=True)
            async for event in taken.generation:
                yield event

    async def _rewritten(self, request: Request) -> Request:
        """By plugins. Raises RouterError."""
        hooks = self._hooks
        return await hooks.rewrite(request) if hooks is not None and hooks.rewrites else request

    async def _routed(self, request: Request, call: Call, counted: bool) -> Candidates:
        """Who may answer, by routing and experiments. `counted`: an answer will be generated."""
        live, assignment = self._live(request), None
        with call.answer.during(ROUTE):
            if live is not None:
                decision, assignment = await live.choose(request, self._router, counted)
            else:
                decision = await self._router.route(request)
        call.answer.decision = decision
        if decision.mixture:
            self._registry.check_mixture(decision.mixture)
        if counted:
            self._router.answered(request, decision)
            if self._hooks is not None:
                self._hooks.decided(request, decision)
        return Candidates(decision, assignment, self._registry, self._resting, request.visible)

    async def _submitted(
        self,
        held: AsyncExitStack,
        request: Request,
        decision: Decision,
        answer: Answer,
        background: bool = False,
        meter: UsageMeter | None = None,
        sample: int = 0,
    ) -> Submitted:
        """Lease, encode, fit, compile, submit; if all works, the end of `held` frees row and lease."""
        async with AsyncExitStack() as mine:
            prepared = await self._prepared(mine, request, decision, answer, needed(request.sampling))
            decision, tokens = prepared.decision, prepared.tokens
            sampling, defaults = request.sampling, prepared.defaults
            info = self._engine.info
            if request.tools.choice == "required" and not info.tool_form:
                sampling, defaults = for_untaught(sampling, defaults)
            params = fit(sampling, defaults, len(tokens), self.context_length, self._max_tokens)
            params = seeded(params, sample)
            check_bias(params, info.vocab_size)
            if meter is not None:
                meter.reserve(len(tokens), params.max_tokens)
            adapter = decision.digest if decision.adapter or decision.mixture else None
            job = Job(
                request.request_id,
                tokens,
                params,
                adapter,
                request.deadline,
                background=background,
                tenant=request.tenant,
                share=request.share,
                own_constraint=request.sampling.constraint is None,
                shared=prepared.shared,
                labels=None
                if background
                else labels_wanted(request, params, prepared.labels, info.abilities),
            )
            if params.constraint is not None:
                prompt = source_text(request.turns, request.raw_prompt)
                job = await self._templates.prepared(self._engine, job, prompt)
            answer.submitted = time.monotonic()
            generation = self._engine.submit(job)
            mine.callback(generation.cancel)
            held.push_async_exit(mine.pop_all())
        return Submitted(decision, generation)

    async def _prepared(
        self,
        held: AsyncExitStack,
        request: Request,
        decision: Decision,
        answer: Answer,
        beside: int | None = None,
    ) -> Prepared:
        """Lease for as long as `held` is open, and encode.

        `beside`: tokens that must fit beside it; a prompt surely too long for that is not read to its end.
        None: the tokens are only counted, of a prompt that may be longer than the context.
        """
        template, defaults, labels = PromptTemplate(), Sampling(), LabelSettings()
        if decision.adapter is not None or decision.mixture:
            with answer.during(LEASE):
                lease = await self._leased(held, decision, request.tenant)
            template, defaults, labels = lease.prompt, lease.generation, lease.labels
            decision = replace(
                decision,
                digest=lease.digest,
                domain=decision.domain or lease.domain,
                task=decision.task or lease.task,
            )
        prompt = Prompt(request.turns, request.raw_prompt, template, tools=request.tools)
        with answer.during(ENCODE):
            tokens = await self._encoded(prompt, request, beside)
        return Prepared(decision, tokens, defaults, labels, self._engine.shared(prompt, tokens))

    async def _encoded(self, prompt: Prompt, request: Request, beside: int | None) -> list[int]:
        limit = self.context_length
        most = max(limit, COUNTED) if beside is None else max(0, limit - beside)
        try:
            if short(prompt):
                return self._engine.encode(prompt, most, partial(check_time, request.deadline))
            return await self._encoding.encode(prompt, most, request.deadline, request.tenant)
        except PromptTooLong as error:
            raise PromptTooLong(limit, error.got + (beside or 0), at_least=error.at_least) from None

    async def _leased(self, held: AsyncExitStack, decision: Decision, tenant: str) -> Lease:
        """A lease for as long as `held` is open. A version that there is no memory to load for rests."""
        ref = decision.adapter
        if ref is None:
            return await held.enter_async_context(self._registry.lease_mixture(decision.mixture, tenant))
        try:
            return await held.enter_async_context(self._registry.lease(ref))
        except ResourceExhausted as error:
            self._resting.add(ref, error)
            raise

    def _watchers(
        self, request: Request, taken: Submitted, choices: Candidates, call: Call
    ) -> Sequence[Watcher]:
        hooks = self._hooks
        found = [begun(request, taken.decision, call.client) for begun in self.begun]
        found.append(hooks.watcher(request, taken.decision) if hooks is not None else None)
        if (live := self._live(request)) is not None:
            found += live.watchers(self._served(request, taken.decision, choices, call))
        return [watcher for watcher in found if watcher is not None]

    def _unserved(self, request: Request, choices: Candidates, call: Call, error: BaseException) -> None:
        """Tell experiments of a request that was routed and that the engine did not take."""
        live, decision = self._live(request), call.answer.decision
        if live is None or decision is None:
            return
        failed, left = how_it_failed(error, self._stopped(call))
        waited = Usage(total_time=time.monotonic() - choices.since)
        end = End(None, "", waited, failed, left, call.answer.untaken)
        live.unserved(self._served(request, decision, choices, call), end)

    def _live(self, request: Request) -> Experiments | None:
        """Experiments, where any run and the request may take part: who names a mixture does not, since no
        arm has asked for it."""
        live = self.experiments
        return live if live is not None and live.running and not request.routing.mixture else None

    def _served(self, request: Request, decision: Decision, choices: Candidates, call: Call) -> Served:
        arm, exposed = (choices.assignment, choices.degraded), call.answer.exposures.append
        return Served(request, decision, *arm, exposed=exposed, since=choices.since)

    def _stopped(self, call: Call) -> str:
        """Why a cancellation would not be the user's."""
        if call.expired:
            return DeadlineExceeded.reason
        return Draining.reason if self.draining else ""


class Candidates:
    """Decisions for one request, the best first: the arm's version, then control's, then the one routed to.

    So a user of an arm sees no error that a user of control would not have seen; without an arm there is one
    choice. The iterating caller tells `failed` why one could not answer; `degraded` is the first error's
    reason. `since`: when the request was routed, in `time.monotonic()` seconds.
    """

    def __init__(
        self,
        decision: Decision,
        assignment: Assignment | None,
        registry: AdapterRegistry,
        resting: Resting,
        visible: Visible = EVERYTHING,
    ) -> None:
        self.assignment, self.degraded, self.since = assignment, "", time.monotonic()
        self._decision, self._registry, self._resting = decision, registry, resting
        arms = assignment.versions if assignment is not None else ()
        arms = tuple(ref for ref in arms if ref is None or ref.name in visible)
        self._left = list(dict.fromkeys((*arms, decision.adapter)))
        self._tried: AdapterRef | None = None

    def __iter__(self) -> Iterator[Decision]:
        """Leaves out what rests, is gone or is quarantined; the last raises what is wrong with it."""
        while self._left:
            self._tried = ref = self._left.pop(0)
            if self._left and (reason := self._resting.reason(ref)):
                self.degraded = self.degraded or reason
                continue
            try:
                decision = self._placed(ref)
            except RouterError as raised:
                self.failed(raised)
            else:
                yield decision

    def failed(self, error: RouterError) -> None:
        """The choice at hand could not answer; raises `error` again where no other could do better.

        A version rests for a fault of its own; a request that does not suit it says nothing of the next one.
        Where nobody named an adapter that would not act on the prompt, the base answers.
        """
        named = self._decision.reason is Reason.EXPLICIT
        if isinstance(error, NotActivated) and not (named or self._left or self._tried is None):
            self._left = [None]
        if not self._left or not isinstance(error, FAULTS + UNFIT):
            raise error
        self.degraded = self.degraded or error.reason
        if isinstance(error, FAULTS):
            self._resting.add(self._tried, error)

    def _placed(self, ref: AdapterRef | None) -> Decision:
        """The decision with that version. Raises AdapterNotFound, FailedPrecondition (quarantined)."""
        decision = self._decision
        if ref == decision.adapter:
            return decision
        if ref is None:
            return replace(decision, adapter=None, digest="", domain="", task="")
        info = self._registry.resolve(ref.name, ref.version)
        return replace(decision, adapter=ref, digest=info.digest, domain=info.domain, task=info.task)


class Resting:
    """Versions that could not answer, each left alone by arms for REST_SECONDS, and why."""

    def __init__(self) -> None:
        self._until: dict[AdapterRef, tuple[float, str]] = {}

    def reason(self, ref: AdapterRef | None) -> str:
        """Of the error that the version had a moment ago; '' if it may be tried."""
        if ref is None or ref not in self._until:
            return ""
        until, reason = self._until[ref]
        if time.monotonic() < until:
            return reason
        del self._until[ref]
        return ""

    def add(self, ref: AdapterRef | None, error: RouterError) -> None:
        """Let it rest. A rest is not made longer, and the base needs none."""
        if ref is not None and not self.reason(ref):
            self._until[ref] = (time.monotonic() + REST_SECONDS, error.reason)


def short(prompt: Prompt) -> bool:
    """Whether to encode it costs less than to wait for a thread."""
    around = len(prompt.template.system) + len(prompt.template.template)
    return prompt.size + around <= AT_ONCE and len(prompt.turns) <= FEW_TURNS


def needed(requested: Sampling) -> int:
    """Tokens of the answer that must fit beside the prompt."""
    return requested.max_tokens or max(requested.min_tokens or 0, 1)


def fit(
    requested: Sampling, adapter: Sampling, prompt_tokens: int, context: int, most: int
) -> SamplingParams:
    """What the caller requests, else the adapter's defaults, else the server's.

    A requested max_tokens must fit beside the prompt in `context` tokens, else PromptTooLong; one that
    is not requested becomes what fits, at most `most`. A prompt is never cut.
    """
    params = SamplingParams.of(requested, adapter)
    room, least = context - prompt_tokens, needed(requested)
    if least > room:
        raise PromptTooLong(context, prompt_tokens + least)
    max_tokens = requested.max_tokens or min(max(params.max_tokens, least), most, room)
    return replace(params, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens))


def labels_wanted(
    request: Request, params: SamplingParams, adapter: LabelSettings, abilities: Collection[Ability]
) -> LabelSettings | None:
    """How the probabilities of choices are calibrated; None where the answer has none.

    `adapter` is what its manifest says. Its calibration is for its own choices and its own prompt.
    Raises FailedPrecondition for an engine that cannot.
    """
    constraint = params.constraint
    wanted = adapter.always if request.want_labels is None else request.want_labels
    if not wanted or constraint is None or constraint.kind != "choices":
        return None
    if Ability.LABELS not in abilities:
        if request.want_labels:
            raise FailedPrecondition("the engine of this server gives no probabilities of choices")
        return None
    own = request.sampling.constraint is None and request.raw_prompt is None
    return adapter if own else LabelSettings()


def seeded(params: SamplingParams, sample: int) -> SamplingParams:
    """For sample number `sample` of several: a seed of its own that follows from the first one's."""
    if params.seed is None or not sample:
        return params
    return replace(params, seed=(params.seed + sample * SEED_STEP) & INT64)


def check_bias(params: SamplingParams, vocabulary: int) -> None:
    """Raise InvalidRequest for a bias of a token that the base does not have."""
    for token, _ in params.logit_bias:
        if not 0 <= token < vocabulary:
            text = f"is no token of the base: ids are 0 to {vocabulary - 1}"
            raise InvalidRequest([FieldViolation(f"sampling.logit_bias[{token}]", text)])
