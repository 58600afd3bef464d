"""What the rest of the system knows of an engine: this protocol and these values.

An engine runs one base model in one thread of its own. Everything here may be called from
the event loop and returns at once, except where it is a coroutine; `encode` and `start` do
real work and belong in a worker thread.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from router.errors import (
    EngineFailed,
    FailedPrecondition,
    FieldViolation,
    InvalidRequest,
    NotActivated,
    Overloaded,
    PromptTooLong,
)
from router.types import (
    HIDDEN_STATES,
    Constraint,
    FinishReason,
    LabelProbabilities,
    LabelSettings,
    PromptTemplate,
    SamplingParams,
    TokenLogprob,
    Tools,
    Turn,
    Usage,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_POOLING = 256  # in progress or waiting


class Ability(StrEnum):
    """What some engines can do and others cannot, in words for people."""

    HIDDEN_STATES = HIDDEN_STATES  # `Engine.read` with a depth
    ACTIVATED = "activated adapters"  # `AdapterArtifact.invocation_tokens`
    ALONE = "the same answer in every batch"
    LABELS = "probabilities of choices"  # `Job.labels`


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The resident base model."""

    name: str
    digest: str  # sha256 over its weights' bytes and shapes
    architecture: str
    dtype: str
    device: str
    context_length: int  # tokens of prompt and answer that one request may have: the KV cache holds as many
    vocab_size: int
    sites: Mapping[str, tuple[int, int]]  # linear module path -> (out_features, in_features)
    size_bytes: int = 0
    kernels: str = "torch"  # "native" or "torch", and why
    weights: str = ""  # what the linear layers' weights are kept in if not in dtype: int8, int4
    abilities: frozenset[Ability] = frozenset(Ability)  # what the engine can do with it
    chat_template: bool = True  # turns are rendered by one; without, texts are joined by empty lines
    tool_form: bool = False  # the chat template shows functions to the model

    @property
    def precision(self) -> str:
        """What answers depend on beside the weights: "bfloat16", or "bfloat16, weights int8"."""
        return f"{self.dtype}, weights {self.weights}" if self.weights else self.dtype

    @property
    def inabilities(self) -> str:
        """What the engine cannot do, for people; empty where it can do everything."""
        return ", ".join(ability for ability in Ability if ability not in self.abilities)

    @property
    def served_digest(self) -> str:
        """The digest, and the weights' precision where it is not the checkpoint's own: "0a1b…+int8"."""
        return f"{self.digest}+{self.weights}" if self.weights else self.digest


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor as bytes read from a file: no torch needed to carry it. Row-major."""

    dtype: str  # safetensors name: F32, F16, BF16
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class SiteDelta:
    """One LoRA site: y += scaling * (x @ a.T) @ b.T (+ bias). a [r, in], b [out, r]."""

    a: TensorData
    b: TensorData
    scaling: float

    @property
    def rank(self) -> int:
        """Rank of this site."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterArtifact:
    """A checked adapter, parsed from the very bytes that were hashed; or a mixture of loaded ones."""

    name: str
    version: str
    digest: str
    sites: Mapping[str, SiteDelta]  # keyed by the base's site name
    parts: tuple[tuple[str, float], ...] = ()  # of a mixture, which has no sites: digests and weights
    invocation_tokens: tuple[int, ...] = ()  # activated LoRA: acts from their last occurrence in a prompt on
    folder: Path | None = None  # where it was read: engines in other processes read it there


def digest_of_mixture(parts: Iterable[tuple[str, float]]) -> str:
    """sha256 over a line for each part, in their order: its digest and its weight in thousandths."""
    lines = (f"{digest} {round(weight * 1000)}\n" for digest, weight in parts)
    return hashlib.sha256("".join(("mixture\n", *lines)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be encoded: turns under a template, or a raw prompt."""

    turns: tuple[Turn, ...] = ()
    raw: str | None = None
    template: PromptTemplate = PromptTemplate()
    follows: bool = False  # raw only: other tokens come before it, so it gets no begin token
    tools: Tools = Tools()

    @property
    def size(self) -> int:
        """Characters of what the caller sent."""
        turns = sum(len(turn.text) + sum(len(call.arguments) for call in turn.calls) for turn in self.turns)
        tools = sum(len(tool.description) + len(tool.parameters) for tool in self.tools.functions)
        return len(self.raw or "") + turns + tools


class Grammar(Protocol):
    """A constraint compiled by an engine, for its jobs."""

    @property
    def constraint(self) -> Constraint:
        """What it was made of."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One generation, encoded. `adapter` is the digest of a loaded adapter or None for the base.

    Where `params` has a constraint, `grammar` is what `Engine.compile` made of it.
    """

    request_id: str
    tokens: Sequence[int]
    params: SamplingParams
    adapter: str | None = None
    deadline: float | None = None  # time.monotonic() seconds
    priority: int = 0  # higher goes first
    background: bool = False  # answered where there is room: at once or never, CANCELLED for a request
    grammar: Grammar | None = None
    tenant: str = ""  # of the caller; "" where there are no tenants
    share: float = 1.0  # of the fair queue, against other tenants'
    own_constraint: bool = False  # the constraint is of the adapter's manifest, not of the request
    shared: int = 0  # tokens at its beginning that `Engine.shared` found; all tenants share their cache
    labels: LabelSettings | None = None  # its constraint is choices, and their probabilities are wanted


@dataclass(frozen=True, slots=True)
class PoolingRequest:
    """Tokens that the base reads and does not answer; float32 numbers come of it.

    With `candidates`, which are token ids: the logit of each behind the last of `tokens`. Only then does an
    `adapter` (digest) act; the first of `tokens` is then the last of a prompt.

    Without: the mean over `tokens` of the hidden states after `depth` of the layers, in [0, 1] (0: the
    embeddings, 1: the last states, normed); with `ends` also over the first and over the last so many of
    them (of fewer tokens, all), one mean behind the other. `context` comes before and does not count.
    """

    tokens: Sequence[int]
    context: Sequence[int] = ()
    depth: float = 1.0
    ends: int = 0
    deadline: float | None = None  # time.monotonic() seconds
    background: bool = False  # computed when nothing else waits
    candidates: Sequence[int] = ()
    adapter: str | None = None
    tenant: str = ""  # with candidates: whose cache it shares, as a job
    shared: int = 0  # as of a job


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that became certain in one step. Never splits a character or shows a stop string."""

    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every generation that did not raise."""

    reason: FinishReason
    usage: Usage = Usage()
    stop: str = ""  # the stop string that ended it
    labels: LabelProbabilities | None = None  # where the job wanted them


class Generation(Protocol):
    """A submitted job. Iterate once; cancelling or closing frees its row within two steps.

    One that is also `Buffered` wakes its reader for many events at once.
    """

    def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        """Deltas, then exactly one Finished; raises EngineFailed if a step raised."""
        ...

    def cancel(self) -> None:
        """Ask the engine to drop it; idempotent, also after the end."""
        ...


class Buffered(Protocol):
    """A generation that keeps its events until its reader takes them."""

    async def wait(self, least: int) -> None:
        """Return when `least` events are there, or the last one or an error."""
        ...

    def ready(self) -> Sequence[Delta | Finished]:
        """Take the events that are there. An error is raised once those before it are taken."""
        ...

    def cancel(self) -> None:
        """As `Generation.cancel`."""
        ...


def buffered(generation: Generation) -> Buffered:
    """The generation itself if it is buffered, else one that reads it."""
    return cast("Buffered", generation) if hasattr(generation, "ready") else Iterated(generation)


class Iterated:
    """The `Buffered` protocol over a generation that can only be iterated."""

    def __init__(self, generation: Generation) -> None:
        self._generation, self._events = generation, aiter(generation)
        self._read: list[Delta | Finished] = []
        self._error: Exception | None = None

    async def wait(self, least: int) -> None:
        """Read so many events, or to the end."""
        while len(self._read) < least and self._error is None:
            try:
                event = await anext(self._events)
            except StopAsyncIteration:
                self._error = EngineFailed("the generation ended without a last event")
            except Exception as error:
                self._error = error
            else:
                self._read.append(event)
                if isinstance(event, Finished):
                    return

    def ready(self) -> Sequence[Delta | Finished]:
        """What was read."""
        found, self._read = self._read, []
        if not found and self._error is not None:
            raise self._error
        return found

    def cancel(self) -> None:
        """Ask the engine to drop it."""
        self._generation.cancel()

    async def close(self) -> None:
        """Stop reading."""
        if isinstance(self._events, AsyncGenerator):
            await self._events.aclose()


async def batches(generation: Buffered, every: int) -> AsyncGenerator[Sequence[Delta | Finished], None]:
    """The events of a generation, the first one as soon as it is there, then `every` at once, and with them
    all that came while the caller was busy. Close it to stop reading.

    What waits is at most one answer's text (bounded by max_tokens).
    """
    least = 1
    try:
        while True:
            await generation.wait(least)
            if batch := generation.ready():
                yield batch
                if isinstance(batch[-1], Finished):
                    return
                least = every
    finally:
        if isinstance(generation, Iterated):
            await generation.close()


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot for health, metrics and admission."""

    running: int = 0
    waiting: int = 0
    reading: int = 0  # pooling requests in progress or queued
    background: int = 0  # background jobs in the batch
    background_dropped: int = 0  # of all so far, those that made room or found none
    preemptions: int = 0  # so far: rows that gave their cache blocks back, and were computed again
    steps: int = 0
    # time.monotonic() of the last completed step or idle wake, or of the work that came to an idle engine
    last_progress: float = 0.0
    busy: bool = False  # work is queued or running, from its arrival on
    failed: str = ""  # the engine cannot go on
    cache_blocks: int = 0
    block_size: int = 0  # tokens in one of them
    cache_blocks_free: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    slots: int = 0
    host_bytes: int = 0
    device_adapters: tuple[str, ...] = ()  # digests in a device slot
    host_adapters: tuple[str, ...] = ()  # digests in host memory
    flaws: tuple[str, ...] = ()  # what is wrong and holds up no request, such as a replica that is lost


class Engine(Protocol):
    """One resident base that serves many adapters in one batch."""

    @property
    def info(self) -> BaseInfo:
        """The base; available after `start`."""
        ...

    def start(self) -> None:
        """Load the base and start the step loop. Blocks; call it from a worker thread."""
        ...

    def close(self) -> None:
        """Stop the step loop; running jobs end as CANCELLED."""
        ...

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """Token ids. Text of turns never produces special ids. Thread-safe, may take a while for a prompt of
        more than 512 characters; a shorter one is encoded on the event loop.

        Raises PromptTooLong, and does not read on, once it is certain that there are more than `most`. Long
        texts are encoded in pieces; `check` is called before each, and ends the encoding if it raises.
        """
        ...

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """How many of its `tokens` are those that every prompt under its template begins with.

        Cheap after `encode` of such a prompt. What a caller says is never among them, unless it repeats them.
        """
        ...

    async def load(self, artifact: AdapterArtifact) -> int:
        """Bring an adapter into host memory; returns its bytes. Idempotent by digest.

        A mixture is made of its parts, which the caller keeps loaded meanwhile.
        Raises AdapterRejected (does not fit this base), ResourceExhausted (no memory) or FailedPrecondition
        (a part of the mixture is not loaded).
        """
        ...

    async def unload(self, digest: str) -> int:
        """Drop an adapter from slot and host memory; returns the bytes freed (0 if unknown).

        The caller guarantees that no job uses it (leases are counted in the registry).
        """
        ...

    async def compile(self, constraint: Constraint, tenant: str = "") -> Grammar:
        """Make a grammar of a constraint, in a worker thread; one that was made is kept for a while.

        It is kept for `tenant` only, since whether another tenant used it must not be measured. "" is for
        constraints of adapters' manifests, which all may use, and where there are no tenants.
        Raises InvalidRequest for one that is wrong, too complex or that no answer satisfies,
        FailedPrecondition if answers of this base cannot be constrained, Overloaded.
        """
        ...

    def submit(self, job: Job) -> Generation:
        """Queue a job from the event loop. Raises Overloaded, PromptTooLong, NotActivated,
        FailedPrecondition.

        A background job takes no place in the queue: one that finds no room at the next step, or whose room a
        request needs later, ends as CANCELLED.
        """
        ...

    async def read(self, request: PoolingRequest) -> NDArray[np.float32]:
        """[hidden size], three of them with `ends`; [len(tokens)] where it has no depth. Cancelling drops it.

        Raises InvalidRequest, PromptTooLong, Overloaded, DeadlineExceeded, EngineFailed.
        """
        ...

    def status(self) -> EngineStatus:
        """A snapshot; cheap."""
        ...


async def with_grammar(engine: Engine, job: Job) -> Job:
    """The job, ready to be submitted: its constraint compiled, if it has one. Raises as `Engine.compile`."""
    constraint = job.params.constraint
    if constraint is None:
        return job
    tenant = "" if job.own_constraint else job.tenant
    return replace(job, grammar=await engine.compile(constraint, tenant))


def common_length(*rows: Sequence[int]) -> int:
    """How many tokens all of them begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))


def check_grammar(job: Job) -> None:
    """Raises FailedPrecondition for a job whose constraint was not compiled, or another was."""
    compiled = None if job.grammar is None else job.grammar.constraint
    if compiled != job.params.constraint:
        raise FailedPrecondition("the constraint of the job has not been compiled")


def check_job(job: Job, context_length: int) -> None:
    """Raises what `Engine.submit` says of jobs that no engine of such a base can serve."""
    if not job.tokens:
        raise InvalidRequest([FieldViolation("input", "has no tokens")])
    if not 0 < job.share < math.inf:  # nor NaN
        raise InvalidRequest([FieldViolation("share", f"must be a number above 0, got {job.share}")])
    check_grammar(job)
    total = len(job.tokens) + job.params.max_tokens
    if total > context_length:
        raise PromptTooLong(context_length, total)


def check_pooling(request: PoolingRequest, context_length: int, held: int) -> None:
    """Raises what `Engine.read` names, for what can be refused at once; `held` requests are not done yet."""
    if not request.tokens:
        raise InvalidRequest([FieldViolation("tokens", "are none: there is nothing to read")])
    if not 0 <= request.depth <= 1:
        raise InvalidRequest([FieldViolation("depth", f"must lie in 0 to 1, got {request.depth}")])
    if request.ends < 0:
        raise InvalidRequest([FieldViolation("ends", f"must be 0 or more, got {request.ends}")])
    total = len(request.context) + len(request.tokens)
    if total > context_length:
        raise PromptTooLong(context_length, total)
    if held >= MAX_POOLING:
        raise Overloaded("too many pooling requests wait", bound="readings")


# Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397), as in PEFT: the base computes what comes before
# the last occurrence of the adapter's invocation tokens in a prompt. The adapter acts on these, on all that
# follows and on the answer. So it can use keys and values that the base computed.


def tokens_before(tokens: Sequence[int], invocation: tuple[int, ...]) -> int:
    """How many of a prompt's `tokens` the base computes; 0 for an adapter without `invocation` tokens.

    Raises NotActivated where they do not occur: the adapter would never act.
    """
    if not invocation:
        return 0
    place = last_occurrence(tokens, invocation)
    if place < 0:
        raise NotActivated(invocation)
    return place


def last_occurrence(tokens: Sequence[int], wanted: tuple[int, ...]) -> int:
    """Where `wanted` last begins, -1 if nowhere. From the end, in linear time (Knuth, Morris, Pratt 1977)."""
    pattern, borders = _backwards(wanted)
    matched = 0
    for place in range(len(tokens) - 1, -1, -1):
        token = tokens[place]
        while matched and token != pattern[matched]:
            matched = borders[matched - 1]
        if token == pattern[matched]:
            matched += 1
            if matched == len(pattern):
                return place
    return -1


@lru_cache(256)
def _backwards(wanted: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The pattern from its end, and the longest proper border of each of its beginnings."""
    pattern = wanted[::-1]
    borders = [0] * len(pattern)
    length = 0
    for place in range(1, len(pattern)):
        while length and pattern[place] != pattern[length]:
            length = borders[length - 1]
        length += pattern[place] == pattern[length]
        borders[place] = length
    return pattern, tuple(borders)
