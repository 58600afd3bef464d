"""Random weights in 4 bits, with scales of ordinary size."""

from __future__ import annotations

import torch

from router.engine.blocks import GROUP_BYTES, BlockWeight


def random_blocks(out: int, groups: int, seed: int = 0) -> BlockWeight:
    """[out, groups * GROUP]; any bytes but for the scales and minima."""
    rng = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (out * groups, GROUP_BYTES), dtype=torch.uint8, generator=rng)
    raw[:, :4] = (torch.randn(len(raw), 2, generator=rng).half() / 16).view(torch.uint8)
    return BlockWeight(raw.view(out, -1))
