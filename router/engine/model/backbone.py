"""What the runner needs of a model, however its layers are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from router.engine.ops import AttentionPlan, LoraPlan, SiteGroup


class Backbone(Protocol):
    """A base model whose linear layers take per-row adapters."""

    groups: list[SiteGroup]  # one LoraPlan (or None) for each, in this order
    kind: str  # "packed" or "generic"

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: Sequence[LoraPlan | None] | None,
        last: torch.Tensor,
    ) -> torch.Tensor:
        """tokens int64 [T] of one step, `last` int64 [S] rows to score -> logits [S, vocabulary]."""
        ...

    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        ...
