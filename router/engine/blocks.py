"""Weights in blocks of few bits, in the forms of GGUF (llama.cpp, `ggml-common.h` and `ggml-quants.c`, MIT).

A block holds 32 or 256 neighbouring inputs of one output. Each group of 16 or 32 inputs has a scale, in some
forms a minimum, too: a weight is `scale * number + minimum`. Blocks stay as they are in the file until the
operations lay them out (`Ops.pack_blocks`), which rounds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_AT_ONCE = 1 << 20  # weights worked on together: temporary copies stay small beside the model


@dataclass(frozen=True, slots=True)
class BlockForm:
    """One kind of block."""

    name: str  # as GGUF calls it
    number: int  # GGUF's number of it
    inputs: int  # weights in a block
    size: int  # bytes of a block
    widen: Callable[[torch.Tensor], torch.Tensor]  # uint8 [n, size] -> float32 [n, inputs]

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.size / self.inputs


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A weight [out, width] in blocks."""

    form: BlockForm
    blocks: torch.Tensor  # uint8 [out, width / form.inputs * form.size]

    @property
    def out(self) -> int:
        """Outputs."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Inputs."""
        return self.blocks.shape[1] // self.form.size * self.form.inputs

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.blocks.nbytes

    def floats(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The outputs start .. stop as float32 [stop - start, width]."""
        some = self.blocks[start:stop]
        return self.form.widen(some.reshape(-1, self.form.size)).view(len(some), self.width)

    def widened(self, dtype: torch.dtype) -> torch.Tensor:
        """All of it, [out, width], rounded to `dtype`."""
        whole = torch.empty(self.out, self.width, dtype=dtype)
        for start, stop in parts(self.out, self.width):
            whole[start:stop] = self.floats(start, stop)
        return whole


def runs_of(weights: Sequence[BlockWeight]) -> list[BlockWeight]:
    """The same outputs in the same order, neighbours of one form in one weight."""
    runs: list[list[BlockWeight]] = []
    for weight in weights:
        if runs and runs[-1][0].form is weight.form:
            runs[-1].append(weight)
        else:
            runs.append([weight])
    return [
        run[0] if len(run) == 1 else BlockWeight(run[0].form, torch.cat([weight.blocks for weight in run]))
        for run in runs
    ]


def parts(rows: int, width: int) -> list[tuple[int, int]]:
    """Ranges of rows that together are about a million weights."""
    step = max(1, _AT_ONCE // max(1, width))
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def _halves(blocks: torch.Tensor, start: int, count: int = 1) -> torch.Tensor:
    """float16 numbers in each block, from a byte on -> float32 [n, count]."""
    return blocks[:, start : start + 2 * count].contiguous().view(torch.float16).float()


def _nibbles(blocks: torch.Tensor, start: int, step: int) -> torch.Tensor:
    """Of each `step` bytes from `start` on the low halves, then the high ones: uint8 [n, groups, step]."""
    packed = blocks[:, start:].reshape(len(blocks), -1, 1, step)
    return torch.cat((packed & 15, packed >> 4), 2).flatten(1, 2)


def _widen_q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return (_nibbles(blocks, 2, 16).flatten(1).float() - 8) * _halves(blocks, 0)


def _widen_q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks, 4, 16).flatten(1).float() * _halves(blocks, 0) + _halves(blocks, 2)


def _widen_q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _halves(blocks, 0)


def _widen_q4_k(blocks: torch.Tensor) -> torch.Tensor:
    packed = blocks[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), 1).float() * _halves(blocks, 0)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), 1).float() * _halves(blocks, 2)
    numbers = _nibbles(blocks, 16, 32).float()
    return (numbers * scales[:, :, None] - minima[:, :, None]).flatten(1)


def _widen_q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), 2).flatten(1)  # [n, 256]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], 2).flatten(1)
    numbers = (low | high << 4).float().view(-1, 16, 16) - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _halves(blocks, 208)
    return (numbers * scales[:, :, None]).flatten(1)


Q4_0 = BlockForm("Q4_0", 2, 32, 18, _widen_q4_0)
Q4_1 = BlockForm("Q4_1", 3, 32, 20, _widen_q4_1)
Q8_0 = BlockForm("Q8_0", 8, 32, 34, _widen_q8_0)
Q4_K = BlockForm("Q4_K", 12, 256, 144, _widen_q4_k)
Q6_K = BlockForm("Q6_K", 14, 256, 210, _widen_q6_k)
FORMS = {form.number: form for form in (Q4_0, Q4_1, Q8_0, Q4_K, Q6_K)}

GROUP = 32  # inputs that share a scale and a minimum in what `quantise_blocks` makes
_LEVELS = 15


def quantise_blocks(weight: torch.Tensor) -> BlockWeight:
    """weight [out, in], `in` in whole groups -> the nearest numbers of Q4_1.

    A group's scale and minimum, in float16, span its weights, so every weight is off by half a scale at most
    (and by what float16 rounds). A group with a value that is not finite gets a scale that is not finite
    either, so that it stays as visibly broken as it was.
    """
    out, width = weight.shape
    blocks = torch.empty(out, width // GROUP * Q4_1.size, dtype=torch.uint8, device=weight.device)
    for start, stop in parts(out, width):
        groups = weight[start:stop].float().reshape(-1, GROUP)
        blocks[start:stop] = _q4_1(groups).view(stop - start, -1)
    return BlockWeight(Q4_1, blocks)


def _q4_1(groups: torch.Tensor) -> torch.Tensor:
    """float32 [n, 32] -> uint8 [n, 20]."""
    low, high = groups.amin(1, True), groups.amax(1, True)
    scale, minimum = ((high - low) / _LEVELS).half(), low.half()
    numbers = ((groups - minimum.float()) / scale.float()).nan_to_num(0.0, _LEVELS, 0.0)
    numbers = numbers.round_().clamp_(0, _LEVELS).to(torch.uint8)
    halves = torch.cat((scale, minimum), 1).view(torch.uint8)
    return torch.cat((halves, numbers[:, :16] | numbers[:, 16:] << 4), 1)
