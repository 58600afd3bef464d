"""An engine without a model: the `Engine` protocol in plain Python, for protocol tests and demonstrations.

A prompt costs one token a UTF-8 byte. The answer is the tag of the adapter that gave it, then the words
of the prompt, one a step, so that a test can see which adapter got which prompt, in which order. Where it is
constrained, it is what its grammar allows and nothing else.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
import time
import zlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from router.classifiers.fake_base import hidden_of
from router.engine.base import (
    AdapterArtifact,
    BaseInfo,
    Delta,
    EngineStatus,
    Finished,
    Job,
    PoolingRequest,
    Prompt,
    check_job,
    check_pooling,
    common_length,
    tokens_before,
)
from router.engine.constrained.compiler import CompiledGrammar, Grammars
from router.engine.constrained.source import BYTES, VocabularySpec
from router.engine.labels import choices_of, probabilities
from router.engine.tool_prompts import calls_as_text
from router.errors import (
    DeadlineExceeded,
    EngineFailed,
    FailedPrecondition,
    NotLoaded,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from router.types import Constraint, FinishReason, LabelProbabilities, TokenLogprob, Usage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FakeRow: TypeAlias = "FakeGeneration | FakePooling"


_END = 261
_LIKED = b'"}])0aA '  # what is soon at an end


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


class FakeEngine(ByteTokens):
    """Deterministic, with switches for slowness (`step_seconds`), faults (`fail_step`) and hangs (`hold`).

    Runs in the event loop of its first `submit`; all times are seconds.
    """

    def __init__(
        self,
        *,
        step_seconds: float = 0.0,
        start_seconds: float = 0.0,
        load_seconds: float = 0.0,
        max_running: int = 32,
        max_queue: int = 256,
        context_length: int = 2048,
        unconstrained: str = "",
    ) -> None:
        """`unconstrained`: why its answers cannot be constrained; empty if they can."""
        self.step_seconds, self.start_seconds, self.load_seconds = step_seconds, start_seconds, load_seconds
        self.max_running, self.max_queue = max_running, max_queue
        self.jobs: deque[Job] = deque(maxlen=1024)
        self.steps = 0
        self._info = BaseInfo("fake", "0" * 64, "Fake", "float32", "cpu", context_length, 256, {})
        self._grammars = byte_grammars(unconstrained)
        self._started = self._closed = False
        self._running: list[FakeRow] = []
        self._waiting: deque[FakeRow] = deque()
        self._adapters: dict[str, int] = {}
        self._invocations: dict[str, tuple[int, ...]] = {}
        self._loop_task: asyncio.Task[None] | None = None
        self._go = asyncio.Event()
        self._go.set()
        self._last_progress = time.monotonic()
        self._failed = ""
        self._fail_step = ""
        self._dropped = 0

    @property
    def info(self) -> BaseInfo:
        """The pretended base."""
        if not self._started:
            raise NotLoaded("the base model is still loading")
        return self._info

    def start(self) -> None:
        """Blocks for `start_seconds`, as a real base does while it loads."""
        time.sleep(self.start_seconds)
        self._started = True

    def close(self) -> None:
        """End every job as CANCELLED."""
        self._closed = True
        self._grammars.close()
        for row in (*self._running, *self._waiting):
            row.end(FinishReason.CANCELLED)
        self._running.clear()
        self._waiting.clear()
        if self._loop_task is not None and not self._loop_task.done():
            self._loop_task.get_loop().call_soon_threadsafe(self._loop_task.cancel)

    async def load(self, artifact: AdapterArtifact) -> int:
        """Remember the adapter; its bytes are what its tensors say, those of a mixture its parts'."""
        await asyncio.sleep(self.load_seconds)
        if any(digest not in self._adapters for digest, _ in artifact.parts):
            raise FailedPrecondition("an adapter of the mixture is not loaded any more: ask again")
        size = sum(len(site.a.data) + len(site.b.data) for site in artifact.sites.values())
        size += sum(self._adapters[digest] for digest, _ in artifact.parts)
        self._adapters[artifact.digest] = size
        self._invocations[artifact.digest] = artifact.invocation_tokens
        return size

    async def unload(self, digest: str) -> int:
        """Forget the adapter."""
        await asyncio.sleep(0)
        self._invocations.pop(digest, None)
        return self._adapters.pop(digest, 0)

    async def compile(self, constraint: Constraint, tenant: str = "") -> CompiledGrammar:
        """The grammar of a constraint, as a real engine makes it."""
        self._check_open()
        return await self._grammars.compile(constraint, tenant)

    def submit(self, job: Job) -> FakeGeneration:
        """Queue a job and start stepping."""
        self._check(job)
        if job.labels is not None:
            choices_of(job)
        row = FakeGeneration(job)
        self.jobs.append(job)
        self._queue(row)
        return row

    async def read(self, request: PoolingRequest) -> NDArray[np.float32]:
        """Numbers of the bytes that were read."""
        self._check_open()
        held = sum(isinstance(row, FakePooling) for row in (*self._running, *self._waiting))
        check_pooling(request, self._info.context_length, held)
        row = FakePooling(request)
        self._queue(row)
        return await row.answer

    def status(self) -> EngineStatus:
        """A snapshot."""
        background = sum(row.background for row in self._running)
        return EngineStatus(
            running=len(self._running) - background,
            waiting=sum(not row.background for row in self._waiting),
            background=background,
            background_dropped=self._dropped,
            steps=self.steps,
            last_progress=self._last_progress,
            busy=self.busy,
            failed=self._failed,
            device_adapters=tuple(self._adapters),
            host_adapters=tuple(self._adapters),
            host_bytes=sum(self._adapters.values()),
        )

    @property
    def busy(self) -> bool:
        """Work is queued or running."""
        return bool(self._running or self._waiting)

    def hold(self) -> None:
        """Hang: no step is made until `resume`."""
        self._go.clear()

    def resume(self) -> None:
        """Undo `hold`."""
        self._go.set()

    def fail_step(self, message: str) -> None:
        """Make the next step raise."""
        self._fail_step = message

    def break_down(self, message: str) -> None:
        """Make the engine unusable, as a lost device does."""
        self._failed = message

    def _queue(self, row: FakeRow) -> None:
        if not self.busy:
            self._last_progress = time.monotonic()
        self._waiting.append(row)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.get_running_loop().create_task(self._run())

    def _check_open(self) -> None:
        if not self._started:
            raise NotLoaded("the base model is still loading")
        if self._failed or self._closed:
            raise Unavailable("the engine has stopped")

    def _check(self, job: Job) -> None:
        self._check_open()
        check_job(job, self._info.context_length)
        if job.adapter is not None and job.adapter not in self._adapters:
            raise FailedPrecondition("the adapter is not loaded", digest=job.adapter)
        if job.adapter is not None:
            tokens_before(job.tokens, self._invocations[job.adapter])
        rows = (row.background for row in (*self._running, *self._waiting))
        held = sum(background is job.background for background in rows)
        if held >= self.max_running + (0 if job.background else self.max_queue):
            raise Overloaded("the queue is full", bound="engine")

    async def _run(self) -> None:
        due = time.monotonic()
        while self.busy:
            # As on a device, a step takes its time, whatever else this event loop does meanwhile.
            due = max(due + self.step_seconds, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            await self._go.wait()
            self._admit()
            try:
                self._step()
            except RuntimeError as error:
                for row in self._running:
                    row.fail(EngineFailed(str(error)))
            self._running = [row for row in self._running if not row.ended]
            self._waiting = deque(row for row in self._waiting if not row.reap())

    def _admit(self) -> None:
        """Requests first, the next of the tenant of which least runs; background jobs only where no request
        waits and a quarter of the rows stays free.
        """
        running = [row for row in self._running if not row.background]
        background = [row for row in self._running if row.background]
        background += [row for row in self._waiting if row.background]
        waiting = deque(row for row in self._waiting if not row.background)
        held = Counter(row.tenant for row in running)
        while waiting and len(running) < self.max_running:
            row = min(waiting, key=lambda row: held[row.tenant])
            waiting.remove(row)
            running.append(row)
            held[row.tenant] += 1
        free = self.max_running - max(1, self.max_running // 4) - len(running)
        kept = 0 if waiting else max(0, free)
        for row in background[kept:]:
            row.end(FinishReason.CANCELLED)
        self._dropped += len(background[kept:])
        self._running, self._waiting = [*running, *background[:kept]], waiting

    def _step(self) -> None:
        if self._fail_step:
            message, self._fail_step = self._fail_step, ""
            raise RuntimeError(message)
        active = [row for row in self._running if not row.reap()]
        for row in active:
            row.step()
        self.steps += bool(active)
        self._last_progress = time.monotonic()


class FakeGeneration:
    """A submitted job: what it will answer, and its way to the caller."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.background, self.tenant = job.background, job.tenant
        self.ended = False
        self._pieces, self._reason, self._stop = _planned(job)
        self._sent = 0
        self._cancelled = False
        self._events: asyncio.Queue[Delta | Finished | Exception] = asyncio.Queue()
        self._submitted = time.monotonic()
        self._first_step = self._first_token = 0.0

    def __aiter__(self) -> AsyncGenerator[Delta | Finished, None]:
        """Deltas, then one Finished."""
        return self._iterate()

    async def _iterate(self) -> AsyncGenerator[Delta | Finished, None]:
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

    def cancel(self) -> None:
        """Leave at the next step."""
        self._cancelled = True

    def reap(self) -> bool:
        """End it if its caller left or its deadline passed; True if it has ended."""
        if not self.ended and self._cancelled:
            self.end(FinishReason.CANCELLED)
        if not self.ended and self.job.deadline is not None and time.monotonic() >= self.job.deadline:
            self.end(FinishReason.DEADLINE)
        return self.ended

    def step(self) -> None:
        """One token, and the end after the last."""
        self._first_step = self._first_step or time.monotonic()
        if self._sent < len(self._pieces):
            piece = self._pieces[self._sent]
            self._sent += 1
            self._first_token = self._first_token or time.monotonic()
            self._events.put_nowait(Delta(piece, 1, self._logprobs(piece)))
        if self._sent >= len(self._pieces):
            self.end(self._reason)

    def end(self, reason: FinishReason) -> None:
        """Send the last event."""
        now = time.monotonic()
        usage = Usage(
            prompt_tokens=len(self.job.tokens),
            completion_tokens=self._sent,
            queue_time=(self._first_step or now) - self._submitted,
            time_to_first_token=(self._first_token or now) - self._submitted,
            total_time=now - self._submitted,
        )
        self.ended = True
        self._events.put_nowait(Finished(reason, usage, self._stop, self._labels()))

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.ended = True
        self._events.put_nowait(error)

    def _labels(self) -> LabelProbabilities | None:
        """The choice that it answers is e^2 times as likely as each other."""
        if self.job.labels is None:
            return None
        constraint, text = choices_of(self.job), "".join(self._pieces)
        scores = np.array([-2.0 * (one != text) for one in constraint.choices])
        return probabilities(constraint, scores, self.job.labels)

    def _logprobs(self, piece: str) -> tuple[TokenLogprob, ...]:
        if not self.job.params.logprobs:
            return ()
        token_id = zlib.crc32(piece.encode()) % 256
        top = tuple((f"{piece}{i}", token_id, -0.5 - i) for i in range(self.job.params.logprobs))
        return (TokenLogprob(piece, token_id, -0.5, top),)


class FakePooling:
    """A request among the rows: one step, and it is done."""

    background, tenant = False, ""

    def __init__(self, request: PoolingRequest) -> None:
        self.answer: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._request = request

    @property
    def ended(self) -> bool:
        """It has its result, or its caller left."""
        return self.answer.done()

    def reap(self) -> bool:
        """End it if its deadline passed; True if it has ended."""
        deadline = self._request.deadline
        if not self.ended and deadline is not None and time.monotonic() >= deadline:
            self.end(FinishReason.DEADLINE)
        return self.ended

    def step(self) -> None:
        """All of it."""
        request = self._request
        self.answer.set_result(hidden_of(request.tokens, request.ends))

    def end(self, reason: FinishReason) -> None:
        """End it without a result."""
        late = reason is FinishReason.DEADLINE
        self.fail(DeadlineExceeded("not read in time") if late else Unavailable("the engine has stopped"))

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.ended:
            self.answer.set_exception(error)


def _planned(job: Job) -> tuple[list[str], FinishReason, str]:
    """Pieces to send, one a step, why the answer ends, and the stop string that ends it."""
    pieces = list(itertools.islice(_whole_answer(job), job.params.max_tokens + 1))
    reason = FinishReason.LENGTH if len(pieces) > job.params.max_tokens else FinishReason.STOP
    pieces = pieces[: job.params.max_tokens]
    text = "".join(pieces)
    found = [(at, stop) for stop in job.params.stop if (at := text.find(stop)) >= 0]
    if not found:
        return pieces, reason, ""
    at, stop = min(found)
    return list(_first_letters(pieces, at)), FinishReason.STOP, stop


def _whole_answer(job: Job) -> Iterator[str]:
    """The whole answer in pieces: a tag, then the prompt's words, again while min_tokens asks for more."""
    if isinstance(job.grammar, CompiledGrammar):
        yield from pieces_of(job.grammar)
        return
    words = text_of(job.tokens).split()
    yield f"[{job.adapter[:8] if job.adapter else 'base'}]"
    repeat = max(job.params.min_tokens - 1, len(words))
    yield from (f" {word}" for word in itertools.islice(itertools.cycle(words), repeat))


def _first_letters(pieces: Sequence[str], length: int) -> Iterator[str]:
    for piece in pieces:
        if length <= 0:
            return
        yield piece[:length]
        length -= len(piece)


def byte_grammars(why_not: str = "") -> Grammars:
    """Compiles for a vocabulary of bytes; with `why_not` nothing is compiled, for that reason."""
    return Grammars(lambda: why_not or VocabularySpec(BYTES, _END + 1, (_END,)))


def pieces_of(grammar: CompiledGrammar) -> Iterator[str]:
    """An answer, the same each time: what is forced in one piece, what is chosen in pieces of one character.

    It ends as soon as it may, which in some grammars is never. Raises InvalidRequest where it cannot go on.
    """
    state = grammar.start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        if piece := decoder.decode(bytes(state.forced())):
            yield piece
        if state.complete:
            return
        state.make_mask(keep_going=False)
        if state.error is not None:
            raise state.error
        allowed = np.flatnonzero(np.unpackbits(state.allowed.view(np.uint8), bitorder="little")).tolist()
        if _END in allowed:
            return
        chosen = next((byte for byte in _LIKED if byte in allowed), allowed[0])
        state.accept(chosen)
        if piece := decoder.decode(bytes([chosen])):
            yield piece
