"""Random weights in blocks, with scales of ordinary size."""

from __future__ import annotations

import torch

from router.engine.blocks import FORMS, BlockForm, BlockWeight

HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}  # where float16 lies
ALL = list(FORMS.values())


def random_blocks(form: BlockForm, out: int, blocks: int, seed: int = 0) -> BlockWeight:
    """[out, blocks * form.inputs]; any bytes but for the scales, and no -128 in Q8_0."""
    rng = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (out * blocks, form.size), dtype=torch.uint8, generator=rng)
    for at in HALVES[form.name]:
        scales = torch.randn(len(raw), 1, generator=rng).half() / 16
        raw[:, at : at + 2] = scales.view(torch.uint8)
    if form.name == "Q8_0":
        raw[:, 2:][raw[:, 2:] == 128] = 0
    return BlockWeight(form, raw.view(out, -1))
