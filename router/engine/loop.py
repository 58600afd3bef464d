"""The step loop: one thread, one `step` after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from threading import Condition, Thread

import torch

from router.engine.base import Delta, EngineStatus
from router.engine.constrained.choosing import sample_rows
from router.engine.drafts import Speculation
from router.engine.ops import BLOCK, FAILED, ChosenToken
from router.engine.output import (
    Event,
    EventDispatcher,
    Events,
    PoolingResult,
    Receiver,
    TokenOutput,
    deliver,
)
from router.engine.rows import AnswerRow, BatchRow, Chunk, PoolingRow, note_labels
from router.engine.runner import Runner
from router.engine.sampling import Sampler
from router.engine.scheduler import Scheduler
from router.errors import EngineFailed, RouterError, Unavailable
from router.types import FinishReason, TokenLogprob

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # how often an idle loop wakes to show that it is alive
BLOCKED_SECONDS = 0.005  # how soon it looks again when nothing that waits can be admitted
_FAILED_TEXT = "the engine failed on this request"
MOST_FAILURES = 3  # steps that may fail in a row before the engine says it cannot go on


class Answering:
    """The answers that get a token in a step: the same as long as its chunks are the very same list."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = [(row, c) for c in chunks if c.samples and isinstance(row := c.row, AnswerRow)]
        self.rows = [row for row, _ in self.chunks]
        self.constrained = any(row.grammar is not None for row in self.rows)
        self.labelled = any(row.labels is not None for row in self.rows)
        self.drafted = any(chunk.drafts for chunk in chunks)


class StepLoop:
    """Owns scheduler, runner and sampler; everything but `add`, `cancel`, `drop`, `stop` is its thread's."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        sampler: Sampler,
        enter: Callable[[], None] = lambda: None,
        speculation: Speculation | None = None,
        ring: Callable[[int], None] | None = None,
    ) -> None:
        """`enter` is called first in the thread that steps. Without `speculation` a step has no drafts.
        `ring`: see `EventDispatcher`."""
        self._enter, self._speculation = enter, speculation
        self._progressed = time.monotonic()  # when the last turn ended
        self._busy_since: float | None = None  # when work came to an idle loop; None while there is none
        self._scheduler, self._runner, self._sampler = scheduler, runner, sampler
        self._dispatcher = EventDispatcher(ring)
        self._rows: dict[Receiver, BatchRow] = {}
        self._chunks: Sequence[Chunk] = ()  # of the last step
        self._answering = Answering(())  # and its answers
        self._inbox: list[Callable[[], None]] = []
        self._wake = Condition()
        self._stopping = self._ended = False
        self._steps = self._failures = self._dropped = 0
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    @property
    def status(self) -> EngineStatus:
        """Busy as soon as work comes. For any thread: counts are read as they are, also amid a turn."""
        scheduler, since = self._scheduler, self._busy_since
        return EngineStatus(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            preemptions=scheduler.preemptions,
            steps=self._steps,
            last_progress=self._progressed if since is None else max(self._progressed, since),
            reading=len(scheduler.pooling) + len(scheduler.pooling_queue),
            background=len(scheduler.background),
            background_dropped=self._dropped,
            busy=since is not None,
            failed="steps fail one after the other" if self._failures >= MOST_FAILURES else "",
            cache_blocks=scheduler.pool.total,
            block_size=BLOCK,
            cache_blocks_free=scheduler.pool.free,
            prefix_hit_tokens=scheduler.pool.hit_tokens,
            prefix_query_tokens=scheduler.pool.query_tokens,
            slots=scheduler.slots.capacity,
            device_adapters=scheduler.slots.resident(),
        )

    def start(self) -> None:
        """Start the thread."""
        self._dispatcher.start()
        self._thread.start()

    def add(self, make_row: Callable[[], BatchRow], stream: Receiver) -> None:
        """Queue a job; its row is made by the engine's thread."""
        self._post(lambda: self._add(make_row, stream))

    def cancel(self, stream: Receiver) -> None:
        """End a job as CANCELLED before the next step."""
        self._post(lambda: self._end(stream, FinishReason.CANCELLED))

    def drop(self, digest: str) -> Future[None]:
        """Free an adapter's slot as soon as no row uses it."""
        done: Future[None] = Future()
        self._post(lambda: self._drop(digest, done))
        return done

    def stop(self) -> None:
        """End every job as CANCELLED and the thread with them."""
        self._post(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    def step(self, chunks: Sequence[Chunk]) -> Events:
        """Run the chunks, sample where a row's tokens are all computed, and return the rows' new events."""
        pooling = bool(self._scheduler.pooling)
        if chunks is not self._chunks:
            self._chunks, self._answering = chunks, Answering(chunks)
        answering = self._answering
        rows = answering.rows
        logits = self._runner.run(chunks, pooling=pooling)
        for chunk in chunks:
            self._scheduler.computed(chunk)
        places = len(rows)
        if answering.labelled:
            note_labels(answering.chunks, logits)
        firsts = logits[:places] if answering.drafted else logits
        tokens = self._sampled(rows, firsts, constrained=answering.constrained) if rows else []
        events: Events = []
        for (row, chunk), token in zip(answering.chunks, tokens, strict=True):
            if chunk.drafts:
                begin, places = places, places + len(chunk.drafts)
                self._accept_drafted(chunk, row, token, logits[begin:places], events)
            else:
                self._accept(row, token, events)
        if pooling:
            events += self._finished_pooling(chunks)
        return events

    def _sampled(
        self, rows: Sequence[AnswerRow], logits: torch.Tensor, *, constrained: bool
    ) -> list[ChosenToken]:
        """The next token of each row of logits [rows, vocabulary]. `constrained`: some are."""
        if constrained:
            return sample_rows(rows, logits, self._sampler)
        return self._sampler.sample(logits, [row.sampling for row in rows])

    def _run(self) -> None:
        self._enter()
        with torch.inference_mode():
            while not self._stopping:
                try:
                    self._turn()
                except Exception:
                    log.exception("the step loop failed outside a step")
                    self._failures += 1
                    self._dispatcher.send([self._fail(row) for row in list(self._rows.values())])
                self._note_progress()
        self._dispatcher.close()
        with self._wake:  # no other thread answers what comes from now on
            self._ended = True
            for command in self._inbox:
                command()

    def _turn(self) -> None:
        """Obey the callers' commands, end what is over, and make a step of what there is to compute."""
        self._take_inbox()
        for row in list(self._scheduler.expired()):
            self._end(row.stream, FinishReason.DEADLINE)
        chunks = self._scheduler.schedule()
        if self._scheduler.dropped or self._scheduler.failed:
            self._end_refused()
        if chunks:
            self._guarded_step(chunks if self._speculation is None else self._speculation.add(chunks))
        else:
            self._dispatcher.flush()

    def _end_refused(self) -> None:
        """End the rows that the scheduler dropped or could not admit."""
        scheduler = self._scheduler
        dropped, scheduler.dropped = scheduler.dropped, []
        failed, scheduler.failed = scheduler.failed, []
        for row in dropped:
            self._end(row.stream, FinishReason.CANCELLED)
        self._dropped += len(dropped)
        for row, error in failed:
            log.error("a row cannot be admitted", exc_info=error)
            self._fail(row)
            shown = error if isinstance(error, RouterError) else EngineFailed(_FAILED_TEXT)
            self._send([(row.stream, shown)])

    def _guarded_step(self, chunks: Sequence[Chunk]) -> None:
        """One step; one that raises fails its rows and no others."""
        try:
            events = self.step(chunks)
        except Exception:
            log.exception("step failed", extra={"rows": len(chunks)})
            self._failures += 1
            events = [self._fail(row) for row in dict.fromkeys(chunk.row for chunk in chunks)]
        else:
            self._failures = 0
        self._steps += 1
        self._send(events)

    def _finished_pooling(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Receiver, Event]]:
        for row in (c.row for c in chunks):
            if isinstance(row, PoolingRow) and not row.remaining:
                values = row.result()
                if values is None:
                    yield self._fail(row)
                else:
                    self._finish(row)
                    yield row.stream, PoolingResult(values)

    def _accept(self, row: AnswerRow, token: ChosenToken, events: Events) -> None:
        """Add a sampled token to its answer, and what its grammar forces after it."""
        if token.token == FAILED or (row.grammar is not None and row.error is not None):
            events.append(self._fail(row))
            return
        if not row.first_token:
            row.first_token = time.monotonic()
        output = row.accept(token.token)
        logprob = self._sampler.logprob(token) if token.top and not output.by_token else None
        self._put(row, output, () if logprob is None else (logprob,), events)

    def _accept_drafted(
        self, chunk: Chunk, row: AnswerRow, token: ChosenToken, logits: torch.Tensor, events: Events
    ) -> None:
        """Add a sampled token, and for as long as its drafts were right, the one chosen behind them.

        `logits` [drafts, vocabulary].
        """
        start, right = len(row.tokens), 0  # how many drafts were
        output, text, logprobs = TokenOutput(), "", list[TokenLogprob]()
        while token.token != FAILED and row.error is None:
            row.first_token = row.first_token or time.monotonic()
            output = row.accept(token.token)
            text += output.text
            if not output.by_token and (logprob := self._sampler.logprob(token)) is not None:
                logprobs.append(logprob)
            new = len(row.tokens) - start
            while right < min(new, len(chunk.drafts)) and row.tokens[start + right] == chunk.drafts[right]:
                right += 1
            if right < new or output.reason is not None or row.error is not None:
                break
            (token,) = self._sampled([row], logits[right - 1 : right], constrained=row.grammar is not None)
        self._scheduler.advance(row, right)
        row.accepted += right
        if self._speculation is not None:
            self._speculation.verified(row, len(chunk.drafts), right)
        if token.token == FAILED and row.error is None:
            # A draft that is not finite makes its neighbours so: the row is computed again without.
            self._retry(chunk, row, right)
        self._put(row, output._replace(text=text), tuple(logprobs), events)

    def _retry(self, chunk: Chunk, row: AnswerRow, right: int) -> None:
        """Compute the row's last tokens again in the next step, without drafts."""
        if self._speculation is not None:
            self._speculation.stop(row)
        row.sampling.undo()
        row.computed -= chunk.count - len(chunk.drafts) + right

    def _put(
        self, row: AnswerRow, output: TokenOutput, logprobs: tuple[TokenLogprob, ...], events: Events
    ) -> None:
        """Add the events of what became certain of an answer."""
        if output.text or logprobs:
            events.append((row.stream, Delta(output.text, row.unsent, logprobs)))
            row.unsent = 0
        if output.reason is not None:
            events.append(self._close(row, output.reason))
        elif row.grammar is not None and row.error is not None:
            events.append(self._fail(row))

    def _finish(self, row: BatchRow) -> None:
        self._rows.pop(row.stream, None)
        if self._speculation is not None:
            self._speculation.ended(row)
        self._scheduler.finish(row)

    def _close(self, row: BatchRow, reason: FinishReason) -> tuple[Receiver, Event]:
        """Take a row out; its last event. Never raises: a row that cannot be finished fails."""
        try:
            self._finish(row)
            return row.stream, row.finished(reason)
        except Exception:
            log.exception("a row cannot be finished")
            return self._fail(row)

    def _fail(self, row: BatchRow) -> tuple[Receiver, RouterError]:
        """Take a row out, also one that cannot be finished as others are. Never raises."""
        try:
            self._finish(row)
        except Exception:
            log.exception("a row that failed cannot be finished")
        return row.stream, row.error or EngineFailed(_FAILED_TEXT)

    def _add(self, make_row: Callable[[], BatchRow], stream: Receiver) -> None:
        if self._stopping:
            self._send([(stream, Unavailable("the engine has stopped"))])
            return
        row: BatchRow | None = None
        try:
            row = self._rows[stream] = make_row()
            if isinstance(row, AnswerRow) and row.grammar is not None:
                self._send(self._start_answer(row))
            if stream in self._rows:
                self._scheduler.add(row)
        except Exception:
            log.exception("a job cannot be prepared")
            self._send([(stream, EngineFailed(_FAILED_TEXT)) if row is None else self._fail(row)])

    def _start_answer(self, row: AnswerRow) -> Events:
        """What its grammar forces a constrained answer to begin with, which may be all of it."""
        output = row.start()
        if row.generated:
            row.first_token = time.monotonic()
        events: Events = []
        self._put(row, output, (), events)
        return events

    def _end(self, stream: Receiver, reason: FinishReason) -> None:
        row = self._rows.get(stream)
        if row is not None:
            self._send([self._close(row, reason)])

    def _send(self, events: Events) -> None:
        if self._ended:  # and the dispatcher with it
            deliver(events)
        else:
            self._dispatcher.send(events)

    def _drop(self, digest: str, done: Future[None]) -> None:
        try:
            self._runner.forget(digest)
            dropped = self._scheduler.slots.drop(digest)
        except Exception as error:
            log.exception("an adapter cannot be dropped")
            done.set_exception(error)
            return
        if dropped or self._ended:
            done.set_result(None)
        else:
            self._post(lambda: self._drop(digest, done))

    def _stop(self) -> None:
        for stream in list(self._rows):
            self._end(stream, FinishReason.CANCELLED)
        self._stopping = True

    def _post(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._ended:
                command()
                return
            self._inbox.append(command)
            self._busy_since = self._busy_since or time.monotonic()
            self._wake.notify()

    def _take_inbox(self) -> None:
        scheduler = self._scheduler
        if not scheduler.active:
            self._dispatcher.flush()
        with self._wake:
            if not self._inbox and not scheduler.active:
                self._wake.wait(BLOCKED_SECONDS if scheduler.busy else IDLE_SECONDS)
            commands, self._inbox = self._inbox, []
        for command in commands:
            command()

    def _note_progress(self) -> None:
        if not self._scheduler.busy:
            with self._wake:
                if not self._inbox:
                    self._busy_since = None
        self._progressed = time.monotonic()
