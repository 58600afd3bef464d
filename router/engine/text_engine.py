"""The base class of engines whose answers come as text, such as those of another service."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from router.engine.base import (
    AdapterArtifact,
    BaseInfo,
    Delta,
    EngineStatus,
    Finished,
    Grammar,
    Job,
    PoolingRequest,
    Prompt,
    check_job,
    common_length,
)
from router.engine.output import StopStrings
from router.engine.tool_prompts import calls_as_text
from router.errors import (
    AdapterRejected,
    EngineFailed,
    FailedPrecondition,
    NotLoaded,
    Overloaded,
    PromptTooLong,
    RouterError,
    Unavailable,
)
from router.types import Constraint, FinishReason, SamplingParams, Usage

if TYPE_CHECKING:
    from router.config import Settings


class ByteTokens:
    """The part of an `Engine` that encodes: a token is a byte of the prompt's text."""

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """The bytes of the prompt's text."""
        if check is not None:
            check()
        least = len(prompt.raw or "") + sum(len(turn.text) for turn in prompt.turns)
        if most is not None and least > most:
            raise PromptTooLong(most, least, at_least=True)
        text = _text(prompt)
        if most is not None and len(text) > most:
            raise PromptTooLong(most, len(text))
        return list(text)

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """Bytes of the template before the user's text; nothing is cached here."""
        if prompt.raw is not None:
            return 0
        before = prompt.template.template.partition("{prompt}")[0]
        return common_length("\n".join(filter(None, [prompt.template.system, before])).encode(), tokens)


def _text(prompt: Prompt) -> bytes:
    """System text, turns and the last turn in its template, a line each; or the raw prompt."""
    if prompt.raw is not None:
        return prompt.raw.encode()
    system = "" if prompt.turns and prompt.turns[0].role == "system" else prompt.template.system
    *before, last = calls_as_text(prompt.turns)
    question = prompt.template.template.replace("{prompt}", last.text)
    return "\n".join(filter(None, [system, *(turn.text for turn in before), question])).encode()


def text_of(tokens: Sequence[int]) -> str:
    """The text that `encode` made these tokens of."""
    return bytes(tokens).decode(errors="replace")


log = logging.getLogger(__name__)
Event = Delta | Finished | Exception


class TextEngine(ByteTokens):
    """Base of an engine whose answers come as text: a subclass writes `answer`.

    It keeps what clients ask of an answer: its greatest length, stop strings, deadlines and cancelling. Up to
    `max_running` answers run at once, the next in order of arrival; up to `max_queue` wait. It serves the
    base alone: adapters and constraints are refused, and there are neither log-probabilities nor hidden
    states. A byte of the prompt counts as a token, and so does a piece of the answer.
    """

    name = "text"  # of the base, as clients see it
    context_length = 1 << 16  # bytes of the prompt and pieces of the answer together

    def __init__(self, settings: Settings | None = None) -> None:
        self._max_running = settings.max_running if settings is not None else 32
        self._max_queue = settings.max_queue if settings is not None else 256
        self._started = self._closed = False
        self._rows: dict[TextGeneration, None] = {}  # in order of arrival
        self._loop: asyncio.AbstractEventLoop | None = None
        self._steps = self._dropped = 0
        self._last_progress = time.monotonic()

    def answer(self, prompt: str, params: SamplingParams) -> AsyncIterator[str]:
        """Yield the answer in pieces, at most `params.max_tokens` of which are taken. Runs on the event loop.

        A `router.errors.RouterError` leaves with its code; any other exception is ENGINE_FAILED for the
        caller and goes into the log.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method answer(self, prompt, params)")

    def start(self) -> None:
        """Called once before the first answer, in a thread: load what is needed here."""
        self._started = True

    def close(self) -> None:
        """End every job as CANCELLED. Called at the end, in a thread."""
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel_all)

    @property
    def info(self) -> BaseInfo:
        """The base, which has no weights here."""
        if not self._started:
            raise NotLoaded("the base model is still loading")
        return BaseInfo(
            self.name,
            digest=hashlib.sha256(self.name.encode()).hexdigest(),
            architecture=type(self).__name__,
            dtype="text",
            device="none",
            context_length=self.context_length,
            vocab_size=256,
            sites={},
            kernels="none",
            abilities=frozenset(),
        )

    async def load(self, artifact: AdapterArtifact) -> int:
        """Refuse it."""
        raise AdapterRejected(f"the engine {self.name} serves no adapters")

    async def unload(self, digest: str) -> int:
        """Nothing is loaded."""
        return 0

    async def compile(self, constraint: Constraint, tenant: str = "") -> Grammar:
        """Refuse it."""
        raise FailedPrecondition(f"answers of the engine {self.name} cannot be constrained")

    async def read(self, request: PoolingRequest) -> NoReturn:
        """Refuse it."""
        raise FailedPrecondition(f"the engine {self.name} gives no hidden states")

    def submit(self, job: Job) -> TextGeneration:
        """See Engine. A background job runs where a quarter of the places stays free."""
        if not self._started:
            raise NotLoaded("the base model is still loading")
        if self._closed:
            raise Unavailable("the engine has stopped")
        check_job(job, self.context_length)
        if job.adapter is not None:
            raise FailedPrecondition("the adapter is not loaded", digest=job.adapter)
        if not job.background and self._held(False) >= self._max_running + self._max_queue:
            raise Overloaded("the queue is full", bound="engine")
        if not self._rows:
            self._last_progress = time.monotonic()
        self._loop = asyncio.get_running_loop()
        row = TextGeneration(self, job)
        self._rows[row] = None
        self._admit()
        return row

    def status(self) -> EngineStatus:
        """A snapshot."""
        running = sum(row.began for row in self._rows if not row.job.background)
        return EngineStatus(
            running=running,
            waiting=self._held(False) - running,
            background=self._held(True),
            background_dropped=self._dropped,
            steps=self._steps,
            last_progress=self._last_progress,
            busy=bool(self._rows),
        )

    def stepped(self) -> None:
        """A piece came."""
        self._steps += 1
        self._last_progress = time.monotonic()

    def ended(self, row: TextGeneration) -> None:
        """Its place is free."""
        self._rows.pop(row, None)
        self._admit()

    def _held(self, background: bool) -> int:
        return sum(row.job.background is background for row in self._rows)

    def _admit(self) -> None:
        """Requests first, in order of arrival; then background jobs, where they leave room."""
        requests = [row for row in self._rows if not row.job.background]
        for row in requests[: self._max_running]:
            row.begin()
        free = self._max_running - max(1, self._max_running // 4) - len(requests)
        background = [row for row in self._rows if row.job.background]
        for row in background[: max(0, free)]:
            row.begin()
        for row in background[max(0, free) :]:
            self._dropped += not row.dropped
            row.dropped = True
            row.cancel()

    def _cancel_all(self) -> None:
        for row in tuple(self._rows):
            row.cancel()


class TextGeneration:
    """A submitted job: a task that takes the pieces of its answer, once `begin` was called."""

    def __init__(self, engine: TextEngine, job: Job) -> None:
        self.job, self.began, self.dropped = job, False, False
        self._engine = engine
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._go = asyncio.Event()
        self._submitted = time.monotonic()
        self._first_step = self._first_piece = 0.0
        self._pieces = 0
        self._stop = StopStrings(job.params.stop)
        self._task = asyncio.create_task(self._run(), name=f"answer {job.request_id}")
        self._task.add_done_callback(self._done)

    def begin(self) -> None:
        """There is a place for it."""
        self.began = True
        self._go.set()

    def cancel(self) -> None:
        """End it as CANCELLED; idempotent."""
        self._task.cancel()

    async def __aiter__(self) -> AsyncGenerator[Delta | Finished, None]:
        """Deltas, then one Finished."""
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel()

    async def _run(self) -> FinishReason:
        deadline = self.job.deadline
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
            return await self._answer()

    async def _answer(self) -> FinishReason:
        """Take pieces until the answer, a stop string or `max_tokens` ends it."""
        await self._go.wait()
        self._first_step = time.monotonic()
        params = self.job.params
        pieces = self._engine.answer(text_of(self.job.tokens), params)
        try:
            async for piece in pieces:
                self._pieces += 1
                self._first_piece = self._first_piece or time.monotonic()
                self._engine.stepped()
                self._send(self._stop.push(piece))
                if self._stop.found:
                    return FinishReason.STOP
                if self._pieces == params.max_tokens:
                    self._send(self._stop.rest())
                    return FinishReason.LENGTH
            self._send(self._stop.rest())
            return FinishReason.STOP
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    def _send(self, text: str) -> None:
        if text:
            self._events.put_nowait(Delta(text))

    def _done(self, task: asyncio.Task[FinishReason]) -> None:
        """However the task ended; one that is cancelled at once never ran."""
        deadline = self.job.deadline
        event: Event
        if task.cancelled():
            event = self._finished(FinishReason.CANCELLED)
        elif (error := task.exception()) is None:
            event = self._finished(task.result())
        elif isinstance(error, TimeoutError) and deadline is not None and time.monotonic() >= deadline:
            event = self._finished(FinishReason.DEADLINE)
        else:
            event = _failed(error)
        self._events.put_nowait(event)
        self._engine.ended(self)

    def _finished(self, reason: FinishReason) -> Finished:
        now = time.monotonic()
        usage = Usage(
            prompt_tokens=len(self.job.tokens),
            completion_tokens=self._pieces,
            queue_time=(self._first_step or now) - self._submitted,
            time_to_first_token=(self._first_piece or now) - self._submitted,
            total_time=now - self._submitted,
        )
        return Finished(reason, usage, self._stop.found)


def _failed(error: BaseException) -> RouterError:
    if isinstance(error, RouterError):
        return error
    log.error("an answer failed", exc_info=error)
    return EngineFailed("the engine failed on this request")
