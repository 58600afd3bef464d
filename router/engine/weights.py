"""Where the weights of a packed base come from: by name, each when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from router.engine.blocks import GROUP, quantise_blocks
from router.engine.ops import Linear, Ops, quantise


class WeightSource(Protocol):
    """The weights of a base by the names that transformers gives them, on the device and in the dtype of
    the engine. Each is asked for once; the source keeps none that it gave away."""

    def __contains__(self, name: str) -> bool:
        """Whether there is one of that name."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """A weight as it is. Raises ConfigError where it cannot be read."""
        ...

    def linear(self, modules: Sequence[str], ops: Ops, quantize: str) -> tuple[Linear, int]:
        """Linear layers that read the same input, one below the other, and the bytes that few bits save.

        A source of weights that are packed already, such as 4-bit blocks, packs them by itself.
        """
        ...


def packed(weight: torch.Tensor, bias: torch.Tensor | None, ops: Ops, quantize: str) -> tuple[Linear, int]:
    """weight [out, in] as `ops` lays it and as `quantize` says (none, int8, int4), and the bytes that saves.

    Where inputs are no whole groups of 4 bits, int4 takes 8 bits.
    """
    if quantize == "none":
        return ops.pack_linear(weight, bias), 0
    if quantize == "int4" and weight.shape[1] % GROUP == 0:
        blocks = quantise_blocks(weight)
        return ops.pack_blocks([blocks], bias, weight.dtype), weight.nbytes - blocks.nbytes
    small = quantise(weight)
    return ops.pack_int8(small, bias, weight.dtype), weight.nbytes - small.nbytes


class ModuleWeights:
    """`WeightSource` of a model that transformers loaded. It is taken apart: what was given away is gone."""

    def __init__(self, model: Any) -> None:
        self._modules: dict[str, Any] = dict(model.named_modules())

    def __contains__(self, name: str) -> bool:
        path, _, leaf = name.rpartition(".")
        return getattr(self._modules.get(path), leaf, None) is not None

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter."""
        path, _, leaf = name.rpartition(".")
        found: torch.Tensor = getattr(self._modules[path], leaf).detach()
        setattr(self._modules[path], leaf, None)
        return found

    def linear(self, modules: Sequence[str], ops: Ops, quantize: str) -> tuple[Linear, int]:
        """Of the modules' own weights."""
        return packed(*joined(self, modules), ops, quantize)


def joined(source: WeightSource, modules: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and biases of layers that read the same input, one below the other."""
    weights = [source.tensor(f"{module}.weight") for module in modules]
    names = [f"{module}.bias" for module in modules]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    if not any(name in source for name in names):
        return weight, None
    biases = [
        source.tensor(name) if name in source else weight.new_zeros(len(own))
        for name, own in zip(names, weights, strict=True)
    ]
    return weight, torch.cat(biases)
