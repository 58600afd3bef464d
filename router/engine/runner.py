"""From the chunks of a step to logits: tensors in, one forward pass, logits out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch

from router.engine.lora import DeviceSlots, LoraBatch
from router.engine.model.backbone import Backbone, Taps
from router.engine.ops import BLOCK, AttentionPlan, LoraStep
from router.engine.reading import ReadingStep
from router.engine.rows import Chunk


class Runner:
    """Runs steps on one backbone; used by the engine thread only."""

    def __init__(self, backbone: Backbone, slots: DeviceSlots, device: torch.device) -> None:
        self._backbone = backbone
        self._slots = slots
        self._device = device
        self._lora: LoraBatch | None = None
        slots.evicted = self.forget

    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Logits [S, vocabulary] of the chunks that sample, in their order."""
        bounds = _running_sum(c.count for c in chunks)
        return self._forward(chunks, bounds, _last(chunks, bounds))

    def run_with_readings(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """The same where some chunks are of readings, which take what they want."""
        bounds = _running_sum(c.count for c in chunks)
        sampled, wanted = _last(chunks, bounds), ReadingStep(chunks, bounds)
        logits = self._forward(chunks, bounds, sampled + wanted.rows, wanted.taps)
        wanted.take(logits[len(sampled) :])
        return logits[: len(sampled)]

    def _forward(
        self, chunks: Sequence[Chunk], bounds: list[int], scored: list[int], taps: Taps | None = None
    ) -> torch.Tensor:
        tokens = [token for c in chunks for token in c.row.tokens[c.row.computed : c.row.computed + c.count]]
        return self._backbone.forward(
            self._tensor(tokens, torch.int64),
            self._attention_plan(chunks, bounds),
            self._lora_step(chunks, bounds),
            self._tensor(scored, torch.int64),
            taps,
        )

    def _attention_plan(self, chunks: Sequence[Chunk], bounds: list[int]) -> AttentionPlan:
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        for c in chunks:
            start, blocks = c.row.computed, _blocks(c)
            positions += range(start, start + c.count)
            slots += [blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(start, start + c.count)]
            tables.append(blocks)
        width = max(len(t) for t in tables)
        contexts = [c.row.computed + c.count for c in chunks]
        return AttentionPlan(
            cu_q=self._tensor(bounds, torch.int32),
            context=self._tensor(contexts, torch.int32),
            block_table=self._tensor([t + [0] * (width - len(t)) for t in tables], torch.int32),
            positions=self._tensor(positions, torch.int32),
            slots=self._tensor(slots, torch.int32),
            most_queries=max(c.count for c in chunks),
            bounds=bounds,
            contexts=contexts,
        )

    def _lora_step(self, chunks: Sequence[Chunk], bounds: list[int]) -> LoraStep | None:
        digests: list[str] = []
        starts: list[int] = []
        for c, start in zip(chunks, bounds, strict=False):
            digest = c.row.adapter
            if digest is not None and (not digests or digests[-1] != digest):
                digests.append(digest)
                starts.append(start)
        if not digests:
            return None
        if self._lora is None or self._lora.key != tuple(digests):
            self._lora = LoraBatch([self._slots[d] for d in digests], self._device)
        return self._lora.at([*starts, bounds[-1]])

    def forget(self, digest: str) -> None:
        """Drop what is kept of an adapter that leaves the device."""
        if self._lora is not None and digest in self._lora.key:
            self._lora = None

    def _tensor(self, values: Sequence[int] | Sequence[list[int]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)


def _last(chunks: Sequence[Chunk], bounds: list[int]) -> list[int]:
    return [end - 1 for c, end in zip(chunks, bounds[1:], strict=True) if c.samples]


def _blocks(chunk: Chunk) -> list[int]:
    allocation = chunk.row.allocation
    if allocation is None:
        raise RuntimeError("a row without blocks was scheduled")
    return allocation.blocks[: -(-(chunk.row.computed + chunk.count) // BLOCK)]


def _running_sum(counts: Iterable[int]) -> list[int]:
    return [0, *accumulate(counts)]
