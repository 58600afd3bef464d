"""What the runner needs of a model, however its layers are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from router.engine.ops import AttentionPlan, LoraPlan, SiteGroup


@dataclass(frozen=True, slots=True)
class Taps:
    """Who gets the hidden states [T, hidden] after so many layers; they are not theirs to keep or change.

    After all layers they are normed. `last`: nothing is wanted of the layers after that one, -1: of all.
    """

    at: Mapping[int, Callable[[torch.Tensor], None]]
    last: int = -1


class Backbone(Protocol):
    """A base model whose linear layers take per-row adapters."""

    groups: list[SiteGroup]  # one LoraPlan (or None) for each, in this order
    kind: str  # "packed" or "generic"
    layers: int

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: Sequence[LoraPlan | None] | None,
        last: torch.Tensor,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """tokens int64 [T] of one step, `last` int64 [S] rows to score -> logits [S, vocabulary]."""
        ...

    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        ...


# Linear layers with weights packed for the device.


Linear = Callable[[torch.Tensor], torch.Tensor]


def join(layers: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and biases of layers that read the same input, one below the other."""
    weight = torch.cat([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = [
        layer.bias if layer.bias is not None else weight.new_zeros(layer.out_features) for layer in layers
    ]
    return weight, torch.cat(biases)


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """x [T, in] -> [T, out], with the weight in oneDNN's blocked layout where that is faster (CPU)."""
    if weight.device.type == "cpu" and torch._C._has_mkldnn:
        return _onednn(weight.contiguous(), bias)
    linear = nn.functional.linear
    return lambda x: linear(x, weight, bias)


def _onednn(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    run = torch.ops.mkldnn._linear_pointwise.default
    nothing: list[Any] = []
    return lambda x: run(x, packed, bias, "none", nothing, "")
