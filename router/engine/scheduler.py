"""Rows, and which of their tokens the next step computes.

A row is one job inside the engine: an answer that grows token by token, or a reading. The scheduler admits
rows where there is room and cuts what they have left to compute into the chunks of a step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from router.engine.base import Finished, Job
from router.engine.blocks import Allocation, BlockPool, chain_root
from router.engine.lora import DeviceSlots
from router.types import FinishReason, Usage

if TYPE_CHECKING:
    from router.engine.handoff import Receiver
    from router.engine.sampling import SamplingState
    from router.engine.text.detokenize import Detokenizer

READING_ROWS = 8
READING_TOKENS = 256  # of one step: each may need its logits kept


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """Tokens, blocks and progress of one job, as the scheduler sees it. Touched by the engine thread only."""

    samples: ClassVar[bool] = True  # a token follows its last one

    stream: Receiver
    tokens: list[int] = field(init=False)
    total: int = field(init=False)  # most tokens it can grow to
    adapter: str | None = field(init=False, default=None)  # digest, None for the base
    deadline: float | None = field(init=False, default=None)  # time.monotonic() seconds
    priority: int = field(init=False, default=0)
    background: bool = field(init=False, default=False)  # gives way to every request
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    computed: int = 0  # tokens whose keys and values are in the cache
    cached: int = 0  # of these, taken from the prefix cache
    root: bytes = b""
    allocation: Allocation | None = None

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values others may use."""
        return self.tokens

    @property
    def remaining(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    def finished(self, reason: FinishReason) -> Finished:
        """Its last event."""
        return Finished(reason)


@dataclass(slots=True, eq=False, kw_only=True)
class AnswerRow(Row):
    """A prompt and the answer that grows behind it."""

    job: Job
    sampling: SamplingState
    detokenizer: Detokenizer
    eos: frozenset[int]
    first_token: float = 0.0
    unsent: int = 0  # tokens whose text is still held back

    def __post_init__(self) -> None:
        job = self.job
        self.tokens = list(job.tokens)
        self.total = len(job.tokens) + job.params.max_tokens
        self.adapter, self.deadline = job.adapter, job.deadline
        self.priority, self.background = job.priority, job.background

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.job.tokens)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    def length_reached(self) -> bool:
        """True once max_tokens were generated."""
        return self.generated >= self.job.params.max_tokens

    def usage(self) -> Usage:
        """Counts and times as of now, in seconds since arrival."""
        now = time.monotonic()
        started = self.admitted or now
        return Usage(
            prompt_tokens=self.prompt_length,
            cached_tokens=self.cached,
            completion_tokens=self.generated,
            queue_time=started - self.arrived,
            time_to_first_token=(self.first_token or now) - self.arrived,
            total_time=now - self.arrived,
        )

    def ended_by(self, token: int) -> FinishReason | None:
        """Why the answer ends with `token`, if it does (stop strings are the detokenizer's)."""
        if token in self.eos and self.generated > self.job.params.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.length_reached() else None

    def finished(self, reason: FinishReason) -> Finished:
        """The end, with counts and times."""
        return Finished(reason, self.usage(), self.detokenizer.stopped or "")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a row, from `row.computed` on.

    `samples`: the step computes the row's last token, so that a new one is sampled.
    """

    row: Row
    count: int
    samples: bool


class Scheduler:
    """Waiting and running rows of one engine; used by the engine thread only.

    Answers that decode get one token each; the rest of the step's token budget goes to prompts, in chunks.
    One that waits is admitted when a place, its blocks and a device slot for its adapter are there; if it has
    to wait for slot or blocks it is passed over, but not for longer than `patience` seconds: then nobody
    behind it is admitted until it is (bounded waiting).

    Readings have a queue and places of their own, so that they neither take a request's place nor wait for
    one. Of a step they get what requests leave, up to a bound, but an eighth always; those in the background
    get no more than that eighth while there are requests.

    Background answers (shadows) run while nobody waits and rows and blocks are plenty, with the step's tokens
    that requests and readings leave, an eighth at most beside them. One that cannot begin in the step it
    comes in is dropped; the newest are dropped one by one before any request waits for a place, blocks or a
    slot.
    """

    def __init__(
        self,
        pool: BlockPool,
        slots: DeviceSlots,
        *,
        base_digest: str,
        max_running: int,
        max_step_tokens: int,
        patience: float = 1.0,
    ) -> None:
        self.pool = pool
        self.slots = slots
        self.waiting: list[Row] = []
        self.running: list[Row] = []
        self.unread: list[Row] = []  # readings that wait
        self.reading: list[Row] = []  # and those in progress
        self.offered: list[Row] = []  # background rows that came since the last step
        self.background: list[Row] = []  # and those that run, oldest first
        self.dropped: list[Row] = []  # background rows that had no room or made room: whoever steps ends them
        self._base_digest = base_digest
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._patience = patience

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute or admit."""
        return self.active or bool(self.waiting or self.unread or self.offered)

    @property
    def active(self) -> bool:
        """Whether there is anything to compute now."""
        return bool(self.running or self.reading or self.background)

    def add(self, row: Row) -> None:
        """Queue it behind all of its priority."""
        _, queue = self._queues(row)
        index = len(queue)
        while index and queue[index - 1].priority < row.priority:
            index -= 1
        queue.insert(index, row)

    def schedule(self) -> list[Chunk]:
        """The next step: base rows first, then one contiguous range for each adapter."""
        self._admit()
        eighth = max(1, self._max_step_tokens // 8)
        kept = eighth if self.reading else 0
        chunks = list(_answers(self.running, self._max_step_tokens - kept))
        if self.reading:
            left = min(self._left(chunks), READING_TOKENS)
            chunks += self._readings(left, min(left, kept) if self.running else left)
        if self.background:
            left = self._left(chunks)
            chunks += _answers(self.background, min(left, eighth) if chunks else left)
        chunks.sort(key=lambda c: (c.row.adapter or "", c.row.arrived))
        return chunks

    def _left(self, chunks: list[Chunk]) -> int:
        return self._max_step_tokens - sum(chunk.count for chunk in chunks)

    def _readings(self, budget: int, background: int) -> Iterator[Chunk]:
        for row in sorted(self.reading, key=lambda r: (-r.priority, r.arrived)):
            aside = row.priority < 0
            count = min(row.remaining, budget, background if aside else budget)
            if count > 0:
                yield Chunk(row, count, samples=False)
                budget -= count
                background -= count if aside else 0

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk's keys and values are in the cache now."""
        row = chunk.row
        row.computed += chunk.count
        if row.allocation is not None and not row.background:  # theirs are not worth others' blocks
            shared = min(row.computed, len(row.prefix))
            self.pool.publish(row.allocation, row.root, row.prefix, shared)

    def finish(self, row: Row) -> None:
        """Free its place, its blocks and its hold on the slot, wherever it is. Idempotent."""
        running, waiting = self._queues(row)
        if row in running:
            running.remove(row)
            self.slots.release(row.adapter)
        elif row in waiting:
            waiting.remove(row)
        if row.allocation is not None:
            self.pool.release(row.allocation)
            row.allocation = None

    def _queues(self, row: Row) -> tuple[list[Row], list[Row]]:
        if not row.samples:
            return self.reading, self.unread
        return (self.background, self.offered) if row.background else (self.running, self.waiting)

    def expired(self) -> Iterator[Row]:
        """Rows whose deadline has passed."""
        now = time.monotonic()
        for row in (*self.running, *self.waiting, *self.reading, *self.unread, *self.background):
            if row.deadline is not None and row.deadline <= now:
                yield row

    def _admit(self) -> None:
        now = time.monotonic()
        if self._admit_requests(now):
            for row in tuple(self.unread[: READING_ROWS - len(self.reading)]):
                if row.priority < 0:
                    self._try_admit(row, now)
                else:
                    self._admit_first(row, now)
        self._admit_background(now)

    def _admit_requests(self, now: float) -> bool:
        """False if one waits so long that readings must not take the blocks it waits for either."""
        for row in tuple(self.waiting):
            if len(self.running) >= self._max_running:
                break
            if not self._admit_first(row, now) and now - row.arrived > self._patience:
                return False
        return True

    def _admit_first(self, row: Row, now: float) -> bool:
        """Admit it, if need be in place of background rows, the newest first."""
        while not self._try_admit(row, now):
            if not self.background:
                return False
            self._drop(self.background[-1])
        return True

    def _admit_background(self, now: float) -> None:
        most = self._max_running - max(1, self._max_running // 4)
        while self.background and len(self.running) + len(self.background) > most:
            self._drop(self.background[-1])
        for row in tuple(self.offered):
            plenty = len(self.running) + len(self.background) < most and (
                self.pool.free - self.pool.needed(row.total) >= self.pool.total // 4
            )
            if self.waiting or not plenty or not self._try_admit(row, now):
                self._drop(row)

    def _drop(self, row: Row) -> None:
        self.finish(row)
        self.dropped.append(row)

    def _try_admit(self, row: Row, now: float) -> bool:
        if not self.slots.acquire(row.adapter, spare=row.background):
            return False
        root = chain_root(self._base_digest, row.adapter)
        allocation = self.pool.allocate(root, row.prefix, row.total)
        if allocation is None:
            self.slots.release(row.adapter)
            return False
        row.root, row.allocation = root, allocation
        row.computed = row.cached = allocation.cached_tokens
        row.admitted = now
        running, waiting = self._queues(row)
        waiting.remove(row)
        running.append(row)
        return True


def _answers(rows: list[Row], budget: int) -> Iterator[Chunk]:
    """Rows that decode, then prompts, oldest first, within `budget` tokens."""
    for row in sorted(rows, key=lambda s: (s.remaining > 1, s.arrived)):
        count = min(row.remaining, budget)
        if count > 0:
            yield Chunk(row, count, count == row.remaining)
            budget -= count
