"""Where the weights of a packed base come from: by the names that transformers gives them, each when it is
asked for, on the device and in the dtype of the engine.

`linear` is the last that asks for a weight, but for a table of embeddings that is the head, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import torch

from router.engine.blocks import GROUP
from router.engine.checkpoint import Tensor
from router.engine.decoder import EMBED
from router.engine.ops import FileRows, Linear, quantise
from router.engine.torch_ops import TorchOps
from router.errors import ConfigError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # by safetensors' names


def packed(
    weight: torch.Tensor, bias: torch.Tensor | None, ops: TorchOps, quantize: str
) -> tuple[Linear, int]:
    """weight [out, in] as `ops` lays it and as `quantize` says (none, int8, int4), and the bytes that saves.

    Where inputs are no whole groups of 4 bits, int4 takes 8 bits.
    """
    if quantize == "none":
        return ops.pack_linear(weight, bias), 0
    if quantize == "int4" and weight.shape[1] % GROUP == 0:
        blocks = ops.quantise_blocks(weight)
        return ops.pack_blocks(blocks, bias, weight.dtype), weight.nbytes - blocks.nbytes
    small = quantise(weight)
    return ops.pack_int8(small, bias, weight.dtype), weight.nbytes - small.nbytes


class ModuleWeights:
    """Those of a model that transformers loaded, which is taken apart: packed weights are gone."""

    def __init__(self, model: Any) -> None:
        self._modules: dict[str, Any] = dict(model.named_modules())

    def __contains__(self, name: str) -> bool:
        path, _, leaf = name.rpartition(".")
        return getattr(self._modules.get(path), leaf, None) is not None

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter as it is."""
        path, _, leaf = name.rpartition(".")
        found: torch.Tensor = getattr(self._modules[path], leaf).detach()
        if found.ndim > 2:  # of all experts of a layer, and packed at once: they are most of a model
            setattr(self._modules[path], leaf, None)
        return found

    def linear(self, modules: Sequence[str], ops: TorchOps, quantize: str) -> tuple[Linear, int]:
        """Linear layers that read the same input, one below the other, and the bytes that few bits save."""
        weight, bias = joined(self, modules)
        for module in modules:
            if f"{module}.weight" != EMBED:
                self._modules[module].weight = None
        return packed(weight, bias, ops, quantize)

    def close(self) -> None:
        """Let the model go."""
        self._modules.clear()


def joined(source: WeightSource, modules: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and biases of layers that read the same input, one below the other."""
    weights = [source.tensor(f"{module}.weight") for module in modules]
    bias = joined_bias(source, modules, [len(weight) for weight in weights])
    return torch.cat(weights) if len(weights) > 1 else weights[0], bias


def joined_bias(source: WeightSource, modules: Sequence[str], outputs: Sequence[int]) -> torch.Tensor | None:
    """Their biases, zeros for those that have none; None where none has one."""
    biases = [source.tensor(f"{m}.bias") if f"{m}.bias" in source else None for m in modules]
    like = next((bias for bias in biases if bias is not None), None)
    if like is None:
        return None
    return torch.cat([like.new_zeros(n) if b is None else b for b, n in zip(biases, outputs, strict=True)])


class FileWeights:
    """Those in safetensors files: what is packed is read straight into its place."""

    def __init__(
        self, tensors: Mapping[str, Tensor], loaded: torch.dtype, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`loaded`: the dtype that the model has in transformers, through which weights go to `dtype`."""
        self._tensors, self._loaded, self._dtype, self._device = tensors, loaded, dtype, device
        self._files: dict[Path, BufferedReader] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """Read whole. Raises ConfigError where it cannot be read."""
        own = self._tensors[name]
        read = torch.empty(own.shape, dtype=DTYPES[own.dtype])
        place, buffer = own.start, read.view(-1).view(torch.uint8).numpy().data
        while len(buffer):
            count = os.preadv(self._file(own), [buffer], place)
            if not count:
                raise _too_short(own)
            buffer, place = buffer[count:], place + count
        return read.to(self._loaded).to(self._device, self._dtype)

    def linear(self, modules: Sequence[str], ops: TorchOps, quantize: str) -> tuple[Linear, int]:
        """Panel by panel where the operations read files, else of whole tensors; 4 bits are made of those."""
        weights = [self._tensors[f"{module}.weight"] for module in modules]
        if quantize != "int4" and all(self._is_direct(weight) for weight in weights):
            int8 = quantize == "int8"
            parts = [
                FileRows(self._file(own), own.start, (own.shape[0], own.shape[1]), DTYPES[own.dtype])
                for own in weights
            ]
            bias = joined_bias(self, modules, [own.shape[0] for own in weights])
            try:
                linear = ops.pack_files(parts, bias, self._dtype, int8=int8)
            except EOFError as error:
                raise _too_short(weights[0]) from error
            if linear is not None:
                saved = sum(
                    prod(own.shape) * (self._dtype.itemsize - 1) - 4 * own.shape[0] for own in weights
                )
                return linear, saved if int8 else 0
        return packed(*joined(self, modules), ops, quantize)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _is_direct(self, own: Tensor) -> bool:
        """Whether its numbers become what is packed in one step."""
        stored = DTYPES[own.dtype]
        return stored != torch.float16 and self._loaded in (stored, self._dtype, torch.float32)

    def _file(self, own: Tensor) -> int:
        if own.file not in self._files:
            try:
                self._files[own.file] = own.file.open("rb")
            except OSError as error:
                raise ConfigError(f"{own.file.name} cannot be read: {error}") from error
        return self._files[own.file].fileno()


WeightSource = ModuleWeights | FileWeights


def _too_short(own: Tensor) -> ConfigError:
    return ConfigError(f"{own.file.name} became shorter while it was read")
