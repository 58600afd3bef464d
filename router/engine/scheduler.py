"""Which tokens of which sequences the next step computes.

Running sequences decode one token each; the rest of the step's token budget goes to prompts, in
chunks. A waiting sequence is admitted when a row, its blocks and a device slot for its adapter are
there; one that has to wait for its slot or blocks is passed over, but not for longer than `patience`
seconds: then nobody behind it is admitted until it is (bounded waiting).

Readings have a queue and places of their own, so that they neither take a request's place nor wait for
one. Of a step they get what requests leave, up to a bound, but an eighth always; those in the background get
no more than that eighth while there are requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from router.engine.blocks import BlockPool, chain_root
from router.engine.sequence import Row
from router.engine.slots import DeviceSlots

READING_ROWS = 8
READING_TOKENS = 256  # of one step: each may need its logits kept


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence, from `sequence.computed` on.

    `samples`: the step computes the sequence's last token, so that a new one is sampled.
    """

    sequence: Row
    count: int
    samples: bool


class Scheduler:
    """Waiting and running sequences of one engine; used by the engine thread only."""

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
        self._base_digest = base_digest
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._patience = patience

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute or admit."""
        return bool(self.running or self.reading or self.waiting or self.unread)

    def add(self, sequence: Row) -> None:
        """Queue it behind all of its priority."""
        queue = self.waiting if sequence.samples else self.unread
        index = len(queue)
        while index and queue[index - 1].priority < sequence.priority:
            index -= 1
        queue.insert(index, sequence)

    def schedule(self) -> list[Chunk]:
        """The next step: base rows first, then one contiguous range for each adapter."""
        self._admit()
        kept = max(1, self._max_step_tokens // 8) if self.reading else 0
        budget = self._max_step_tokens - kept
        chunks = []
        for sequence in sorted(self.running, key=lambda s: (s.remaining > 1, s.arrived)):
            count = min(sequence.remaining, budget)
            if count > 0:
                chunks.append(Chunk(sequence, count, count == sequence.remaining))
                budget -= count
        if self.reading:
            left = min(budget + kept, READING_TOKENS)
            chunks += self._readings(left, min(left, kept) if self.running else left)
        chunks.sort(key=lambda c: (c.sequence.adapter or "", c.sequence.arrived))
        return chunks

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
        sequence = chunk.sequence
        sequence.computed += chunk.count
        if sequence.allocation is not None:
            shared = min(sequence.computed, len(sequence.prefix))
            self.pool.publish(sequence.allocation, sequence.root, sequence.prefix, shared)

    def finish(self, sequence: Row) -> None:
        """Free the row, its blocks and its hold on the slot, wherever it is. Idempotent."""
        running, waiting = self._queues(sequence)
        if sequence in running:
            running.remove(sequence)
            self.slots.release(sequence.adapter)
        elif sequence in waiting:
            waiting.remove(sequence)
        if sequence.allocation is not None:
            self.pool.release(sequence.allocation)
            sequence.allocation = None

    def _queues(self, row: Row) -> tuple[list[Row], list[Row]]:
        return (self.running, self.waiting) if row.samples else (self.reading, self.unread)

    def expired(self) -> Iterator[Row]:
        """Sequences whose deadline has passed."""
        now = time.monotonic()
        for sequence in (*self.running, *self.waiting, *self.reading, *self.unread):
            if sequence.deadline is not None and sequence.deadline <= now:
                yield sequence

    def _admit(self) -> None:
        now = time.monotonic()
        for sequence in tuple(self.waiting):
            if len(self.running) >= self._max_running:
                break
            if self._try_admit(sequence, now):
                continue
            if now - sequence.arrived > self._patience:
                return  # readings must not take the blocks it waits for either
        for row in tuple(self.unread[: READING_ROWS - len(self.reading)]):
            self._try_admit(row, now)

    def _try_admit(self, sequence: Row, now: float) -> bool:
        if not self.slots.acquire(sequence.adapter):
            return False
        root = chain_root(self._base_digest, sequence.adapter)
        allocation = self.pool.allocate(root, sequence.prefix, sequence.total)
        if allocation is None:
            self.slots.release(sequence.adapter)
            return False
        sequence.root, sequence.allocation = root, allocation
        sequence.computed = sequence.cached = allocation.cached_tokens
        sequence.admitted = now
        running, waiting = self._queues(sequence)
        waiting.remove(sequence)
        running.append(sequence)
        return True
