"""Which tokens of which sequences the next step computes.

Running sequences decode one token each; the rest of the step's token budget goes to prompts, in
chunks. A waiting sequence is admitted when a row, its blocks and a device slot for its adapter are
there; one that has to wait for its slot or blocks is passed over, but not for longer than `patience`
seconds: then nobody behind it is admitted until it is (bounded waiting).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from router.engine.blocks import BlockPool, chain_root
from router.engine.sequence import Sequence
from router.engine.slots import DeviceSlots


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence, from `sequence.computed` on.

    `samples`: the step computes the sequence's last token, so that a new one is sampled.
    """

    sequence: Sequence
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
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._base_digest = base_digest
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._patience = patience

    def add(self, sequence: Sequence) -> None:
        """Queue it behind all of its priority."""
        index = len(self.waiting)
        while index and self.waiting[index - 1].job.priority < sequence.job.priority:
            index -= 1
        self.waiting.insert(index, sequence)

    def schedule(self) -> list[Chunk]:
        """The next step: base rows first, then one contiguous range for each adapter."""
        self._admit()
        budget = self._max_step_tokens
        chunks = []
        for sequence in sorted(self.running, key=lambda s: (s.remaining > 1, s.arrived)):
            count = min(sequence.remaining, budget)
            if count > 0:
                chunks.append(Chunk(sequence, count, count == sequence.remaining))
                budget -= count
        chunks.sort(key=lambda c: (c.sequence.adapter or "", c.sequence.arrived))
        return chunks

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk's keys and values are in the cache now."""
        sequence = chunk.sequence
        sequence.computed += chunk.count
        if sequence.allocation is not None:
            self.pool.publish(sequence.allocation, sequence.root, sequence.tokens, sequence.computed)

    def finish(self, sequence: Sequence) -> None:
        """Free the row, its blocks and its hold on the slot, wherever it is. Idempotent."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.slots.release(sequence.adapter)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.allocation is not None:
            self.pool.release(sequence.allocation)
            sequence.allocation = None

    def expired(self) -> Iterator[Sequence]:
        """Sequences whose deadline has passed."""
        now = time.monotonic()
        for sequence in (*self.running, *self.waiting):
            if sequence.job.deadline is not None and sequence.job.deadline <= now:
                yield sequence

    def _admit(self) -> None:
        now = time.monotonic()
        for sequence in tuple(self.waiting):
            if len(self.running) >= self._max_running:
                return
            if self._try_admit(sequence, now):
                continue
            if now - sequence.arrived > self._patience:
                return

    def _try_admit(self, sequence: Sequence, now: float) -> bool:
        if not self.slots.acquire(sequence.adapter):
            return False
        root = chain_root(self._base_digest, sequence.adapter)
        allocation = self.pool.allocate(root, sequence.tokens, sequence.total)
        if allocation is None:
            self.slots.release(sequence.adapter)
            return False
        sequence.root, sequence.allocation = root, allocation
        sequence.computed = sequence.cached = allocation.cached_tokens
        sequence.admitted = now
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True
