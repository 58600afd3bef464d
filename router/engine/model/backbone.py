"""What the runner needs of a model, however its layers are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from router.engine.ops import AttentionPlan, LoraStep, SiteGroup


@dataclass(frozen=True, slots=True)
class Taps:
    """Who gets the hidden states [T, hidden] after so many layers; they are not theirs to keep or change.

    After all layers they are normed. `last`: nothing is wanted of the layers after that one, -1: of all.
    """

    at: Mapping[int, Callable[[torch.Tensor], None]]
    last: int = -1


class Backbone(Protocol):
    """A base model whose linear layers take per-row adapters."""

    groups: list[SiteGroup]  # one LoraStep (or None) for each, in this order
    kind: str  # "packed" or "generic"
    layers: int
    saved: int  # bytes of weights that 8 bits save

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: LoraStep | None,
        last: torch.Tensor,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """tokens int64 [T] of one step, `last` int64 [S] rows to score -> logits [S, vocabulary]."""
        ...

    def resize(self, blocks: int) -> None:
        """A KV cache of so many blocks in place of the one that is there; what was in it is gone."""
        ...

    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        ...
