"""Weights in 4 bits: 32 neighbouring inputs of an output share a scale and a minimum.

A weight is `scale * number + minimum`, with a whole number from 0 to 15. A group of 32 is 20 bytes: scale and
minimum in float16, then the numbers: byte i has number i in its low half and number i + 16 in its high half.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GROUP = 32  # inputs that share a scale and a minimum
GROUP_BYTES = 20
_AT_ONCE = 1 << 20  # weights worked on together: temporary copies stay small beside the model
_LEVELS = 15
_NEAR = 1 << 16  # weights whose copies stay in the caches
_RANGES, _REFITS, _NARROWER = 7, 2, 0.05


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A weight [out, width] in 4 bits."""

    blocks: torch.Tensor  # uint8 [out, width / GROUP * GROUP_BYTES]

    @property
    def out(self) -> int:
        """Outputs."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Inputs."""
        return self.blocks.shape[1] // GROUP_BYTES * GROUP

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.blocks.nbytes

    def floats(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The outputs start .. stop as float32 [stop - start, width]."""
        groups = self.blocks[start:stop].reshape(-1, GROUP_BYTES)
        halves = groups[:, :4].contiguous().view(torch.float16).float()
        numbers = torch.cat((groups[:, 4:] & 15, groups[:, 4:] >> 4), 1).float()
        return (numbers * halves[:, :1] + halves[:, 1:]).view(-1, self.width)


def parts(rows: int, width: int, at_once: int = 0) -> list[tuple[int, int]]:
    """Ranges of rows that together are about so many weights, a million if it is not said."""
    step = max(1, (at_once or _AT_ONCE) // max(1, width))
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def quantise_blocks(weight: torch.Tensor) -> BlockWeight:
    """weight [out, in], `in` in whole groups, as the native operations make it (`quantise.cpp`).

    Several ranges are tried, from that of a group to 0.7 of it; for each, numbers and then scale and minimum
    are fitted in turn. What has the least squared error is taken; errors count by the size of a weight and of
    its group, as in the quantisers of llama.cpp. A group with a value that is not finite gets a scale that is
    not finite either, so that it stays as visibly broken as it was.
    """
    out, width = weight.shape
    blocks = torch.empty(out, width // GROUP * GROUP_BYTES, dtype=torch.uint8, device=weight.device)
    for start, stop in parts(out, width, _NEAR):
        groups = weight[start:stop].float().reshape(-1, GROUP)
        blocks[start:stop] = _packed(groups).view(stop - start, -1)
    return BlockWeight(blocks)


def _packed(groups: torch.Tensor) -> torch.Tensor:
    """float32 [n, 32] -> uint8 [n, 20]."""
    scale, minimum = _fitted(groups)
    broken = (groups * 0).sum(1, True)  # 0, or not a number
    scale, minimum = (scale + broken).half(), (minimum + broken).half()
    numbers = _numbers(groups, scale.float(), minimum.float()).to(torch.uint8)
    halves = torch.cat((scale, minimum), 1).view(torch.uint8)
    return torch.cat((halves, numbers[:, :16] | numbers[:, 16:] << 4), 1)


def _fitted(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of each group, float32 [n, 1]."""
    low, high = groups.amin(1, True), groups.amax(1, True)
    counts = groups.square().mean(1, True).sqrt() + groups.abs()
    best = (high - low) / _LEVELS, low
    least = torch.full_like(low, torch.inf)
    c, cv = counts.sum(1, True), (counts * groups).sum(1, True)
    for step in range(_RANGES):
        cut = step * _NARROWER
        scale, minimum = (high - low) * ((1 - cut) / _LEVELS), low + (high - low) * (cut / 2)
        for _ in range(_REFITS + 1):
            numbers = _numbers(groups, scale, minimum)
            error = (counts * (numbers * scale + minimum - groups).square()).sum(1, True)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scale, best[0]), torch.where(better, minimum, best[1])
            weighed = counts * numbers
            cn, cnn = weighed.sum(1, True), (weighed * numbers).sum(1, True)
            whole = c * cnn - cn * cn
            fitted = (c * (weighed * groups).sum(1, True) - cn * cv) / whole
            fits = (whole > 0) & (fitted > 0)
            minimum = torch.where(fits, (cv - fitted * cn) / c, minimum)
            scale = torch.where(fits, fitted, scale)
    return best


def _numbers(groups: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """The nearest in 0 .. 15, as float32."""
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    return ((groups - minimum) * inverse).nan_to_num(0.0, _LEVELS, 0.0).round().clamp(0, _LEVELS)
