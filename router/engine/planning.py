"""From the chunks of a step to the numbers that its forward pass is given: tokens, and where they lie.

Between two steps all weights went through the caches, so whatever planning looks at comes from memory: its
cost is the number of things it touches, code included. One call of torch or numpy that nothing else makes
costs more than a loop over 16 rows (a list made a tensor: 2 us while it is in the caches, 100 us when not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from router.engine.ops import BLOCK, AttentionPlan

if TYPE_CHECKING:
    from router.engine.rows import Chunk


@dataclass(slots=True)
class StepPlan:
    """What a forward pass is given, but for adapters. Holds until the next one is made."""

    tokens: torch.Tensor  # int64 [T]
    attention: AttentionPlan
    sampled: list[int]  # those of the tokens that a new one is sampled after
    scored: torch.Tensor  # the same as int64 [S]


class Planner:
    """Plans steps for one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._decoding: Decoding | None = None

    def plan(self, chunks: Sequence[Chunk]) -> StepPlan:
        """That of the chunks, in their order."""
        contexts = [c.row.computed + c.after + c.count for c in chunks]
        if self._decoding is not None and self._decoding.move_on(chunks, contexts):
            return self._decoding.plan
        plan = self._made(chunks, contexts)
        on_cpu = self._device.type == "cpu"  # elsewhere a plan has to be sent anyway
        decodes = plan.attention.most_queries == 1 and len(plan.sampled) == len(chunks)
        self._decoding = Decoding(plan, chunks) if on_cpu and decodes else None
        return plan

    def _made(self, chunks: Sequence[Chunk], contexts: list[int]) -> StepPlan:
        bounds = [0, *accumulate(c.count for c in chunks)]
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        for chunk, context in zip(chunks, contexts, strict=True):
            blocks, places = _blocks(chunk)[: -(-context // BLOCK)], range(context - chunk.count, context)
            tokens += chunk.row.tokens[places.start : places.stop]
            positions += places
            slots += [blocks[p // BLOCK] * BLOCK + p % BLOCK for p in places]
            tables.append(blocks)
        width = max(len(t) for t in tables)
        attention = AttentionPlan(
            cu_q=self._tensor(bounds),
            context=self._tensor(contexts),
            block_table=self._tensor([t + [0] * (width - len(t)) for t in tables]),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            most_queries=max(c.count for c in chunks),
            bounds=bounds,
            contexts=contexts,
        )
        sampled = [end - 1 for c, end in zip(chunks, bounds[1:], strict=True) if c.samples]
        return StepPlan(
            self._tensor(tokens, torch.int64), attention, sampled, self._tensor(sampled, torch.int64)
        )

    def _tensor(
        self, values: Sequence[int] | Sequence[list[int]], dtype: torch.dtype = torch.int32
    ) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)


class Decoding:
    """The plan of answers that decode, changed in place while the same ones go on: most steps are such."""

    def __init__(self, plan: StepPlan, chunks: Sequence[Chunk]) -> None:
        self.plan = plan
        self._chunks = chunks
        at = plan.attention
        self._room = at.block_table.shape[1]  # blocks in a row of the table
        self._tokens, self._context = _numbers(plan.tokens), _numbers(at.context)
        self._positions, self._slots = _numbers(at.positions), _numbers(at.slots)
        self._table = _numbers(at.block_table)

    def move_on(self, chunks: Sequence[Chunk], contexts: list[int]) -> bool:
        """Make it the next step's; False if that has other rows, more tokens of one or a block too many."""
        attention = self.plan.attention
        if chunks is not self._chunks or contexts != [context + 1 for context in attention.contexts]:
            return False
        if max(contexts) > self._room * BLOCK:
            return False
        for row, context in enumerate(contexts):
            self._tokens[row] = chunks[row].row.tokens[-1]
            self._context[row], self._positions[row] = context, context - 1
            if context % BLOCK == 1:
                place = context // BLOCK
                self._table[row * self._room + place] = block = _blocks(chunks[row])[place]
                self._slots[row] = block * BLOCK
            else:
                self._slots[row] += 1
        attention.contexts, attention.memo = contexts, {}
        return True


def _blocks(chunk: Chunk) -> list[int]:
    allocation = chunk.row.allocation
    if allocation is None:
        raise RuntimeError("a row without blocks was scheduled")
    return allocation.blocks


def _numbers(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory, flat: one number is read or written without a call of torch."""
    return tensor.view(-1).numpy().data
