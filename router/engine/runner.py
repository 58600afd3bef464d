"""From the chunks of a step to logits: a plan, the adapters, one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from router.engine.lora import DeviceSlots, LoraBatch
from router.engine.model.backbone import Backbone, Taps
from router.engine.ops import LoraStep
from router.engine.planning import Planner, StepPlan
from router.engine.reading import ReadingStep
from router.engine.rows import Chunk


class Runner:
    """Runs steps on one backbone; used by the engine thread only."""

    def __init__(self, backbone: Backbone, slots: DeviceSlots, device: torch.device) -> None:
        self._backbone = backbone
        self._slots = slots
        self._device = device
        self._planner = Planner(device)
        self._lora: LoraBatch | None = None
        slots.evicted = self.forget

    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Logits [S, vocabulary] of the chunks that sample, in their order."""
        plan = self._planner.plan(chunks)
        return self._forward(chunks, plan, plan.scored)

    def run_with_readings(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """The same where some chunks are of readings, which take what they want."""
        plan = self._planner.plan(chunks)
        wanted, sampled = ReadingStep(chunks, plan.attention.bounds), len(plan.sampled)
        scored = torch.tensor([*plan.sampled, *wanted.rows], dtype=torch.int64, device=self._device)
        logits = self._forward(chunks, plan, scored, wanted.taps)
        wanted.take(logits[sampled:])
        return logits[:sampled]

    def _forward(
        self, chunks: Sequence[Chunk], plan: StepPlan, scored: torch.Tensor, taps: Taps | None = None
    ) -> torch.Tensor:
        lora = self._lora_step(chunks, plan.attention.bounds)
        return self._backbone.forward(plan.tokens, plan.attention, lora, scored, taps)

    def _lora_step(self, chunks: Sequence[Chunk], bounds: list[int]) -> LoraStep | None:
        digests: list[str] = []
        starts: list[int] = []
        for c, start in zip(chunks, bounds, strict=False):
            digest = c.adapter
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
