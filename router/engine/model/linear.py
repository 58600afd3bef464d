"""Linear layers with weights packed for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

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
