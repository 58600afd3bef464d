"""Weights in 8 bits: a linear layer's as whole numbers with one scale for each output."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LARGEST = 127  # -128 has no counterpart, and no place in the native operations' table
_AT_ONCE = 1 << 20  # weights rounded together: the float32 copy stays small beside the model


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """values * scales[:, None] stands for a weight [out, in]."""

    values: torch.Tensor  # int8 [out, in], -127 .. 127
    scales: torch.Tensor  # float32 [out]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.scales.nbytes


def quantise(weight: torch.Tensor) -> Int8Weight:
    """weight [out, in] -> the nearest whole numbers; the largest of each output is 127, ties go to even.

    Every weight is off by half a scale at most. An output of zeros alone gets scale 0; one with a value that
    is not finite gets one that is not finite either, so that it stays as visibly broken as it was.
    """
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    rows = max(1, _AT_ONCE // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].float()
        scale = part.abs().amax(1) / LARGEST
        steps = (part / scale[:, None]).nan_to_num(0.0, LARGEST, -LARGEST)
        values[start : start + rows] = steps.round().clamp(-LARGEST, LARGEST)
        scales[start : start + rows] = scale
    return Int8Weight(values, scales)
