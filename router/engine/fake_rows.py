"""One job of the fake engine: what it will answer, and its way to the caller."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence

from router.engine.base import Delta, Finished, Job
from router.types import FinishReason, TokenLogprob, Usage


def words_of(tokens: Sequence[int]) -> list[str]:
    """The words of a prompt that was encoded as its bytes."""
    return bytes(tokens).decode(errors="replace").split()


def answer_of(job: Job) -> Iterator[str]:
    """The whole answer in pieces: a tag, then the prompt's words, again while min_tokens asks for more."""
    words = words_of(job.tokens)
    yield f"[{job.adapter[:8] if job.adapter else 'base'}]"
    repeat = max(job.params.min_tokens - 1, len(words))
    yield from (f" {word}" for word in itertools.islice(itertools.cycle(words), repeat))


def plan(job: Job) -> tuple[list[str], FinishReason, str]:
    """Pieces to send, one a step, why the answer ends, and the stop string that ends it."""
    pieces = list(itertools.islice(answer_of(job), job.params.max_tokens + 1))
    reason = FinishReason.LENGTH if len(pieces) > job.params.max_tokens else FinishReason.STOP
    pieces = pieces[: job.params.max_tokens]
    text = "".join(pieces)
    found = [(at, stop) for stop in job.params.stop if (at := text.find(stop)) >= 0]
    if not found:
        return pieces, reason, ""
    at, stop = min(found)
    return list(_cut(pieces, at)), FinishReason.STOP, stop


def _cut(pieces: Sequence[str], length: int) -> Iterator[str]:
    for piece in pieces:
        if length <= 0:
            return
        yield piece[:length]
        length -= len(piece)


class Row:
    """A submitted job: the `Generation` protocol."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.background = job.background
        self.ended = False
        self._pieces, self._reason, self._stop = plan(job)
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
        self._events.put_nowait(Finished(reason, usage, self._stop))

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.ended = True
        self._events.put_nowait(error)

    def _logprobs(self, piece: str) -> tuple[TokenLogprob, ...]:
        if not self.job.params.logprobs:
            return ()
        token_id = zlib.crc32(piece.encode()) % 256
        top = tuple((f"{piece}{i}", token_id, -0.5 - i) for i in range(self.job.params.logprobs))
        return (TokenLogprob(piece, token_id, -0.5, top),)
