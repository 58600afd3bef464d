"""Weights in 4 bits: what is made of a checkpoint's, and what numbers they are."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from router.engine import blocks
from router.engine.blocks import GROUP_BYTES, quantise_blocks
from router.engine.torch_ops import TorchOps
from tests.engine.block_cases import random_blocks


def test_the_numbers_are_those_of_another_reader():
    """llama.cpp calls this form Q4_1."""
    weight = random_blocks(5, 3)
    expected = gguf.quants.dequantize(weight.blocks.numpy(), gguf.GGMLQuantizationType.Q4_1)
    assert np.array_equal(weight.floats().numpy(), expected)
    assert np.array_equal(weight.floats(2, 4).numpy(), expected[2:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_4_bits_are_nearer_than_the_nearest_of_the_whole_range(dtype, monkeypatch):
    monkeypatch.setattr(blocks, "_NEAR", 200)
    weight = torch.randn(7, 96).to(dtype) / 8
    weight[3, 32:64] = 0.25
    made = quantise_blocks(weight)
    assert (made.out, made.width, made.nbytes) == (7, 96, 7 * 60)
    groups = weight.float().view(-1, 32)
    low = groups.amin(1, True)
    step = (groups.amax(1, True) - low).clamp_min(1e-9) / 15
    plain = ((groups - low) / step).round() * step + low
    counts = groups.square().mean(1, True).sqrt() + groups.abs()
    mine, theirs = ((counts * (v - groups).square()).sum() for v in (made.floats().view(-1, 32), plain))
    assert 0.5 * theirs < mine < 0.95 * theirs
    assert bool((made.floats()[3, 32:64] == 0.25).all())


def test_numbers_of_16_levels_stay_as_they_are():
    """So does a base that was de-quantised from Q4_1."""
    weight = random_blocks(6, 4)
    raw = weight.blocks.view(-1, GROUP_BYTES)
    raw[:, 0:2] = raw[:, 0:2].contiguous().view(torch.float16).abs().view(torch.uint8)
    raw[:, 4], raw[:, 5] = 0xF0, 0x0F  # both ends occur
    again = quantise_blocks(weight.floats())
    assert float((again.floats() - weight.floats()).abs().max()) < 2e-3


def test_what_is_not_finite_shows():
    weight = torch.randn(3, 64)
    weight[1, 5] = torch.nan
    y = TorchOps().pack_blocks(quantise_blocks(weight), None, torch.float32)(torch.rand(2, 64))
    assert torch.isfinite(y).all(0).tolist() == [True, False, True]
