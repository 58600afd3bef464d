"""Weights in blocks: the numbers of GGUF, and what is made of a checkpoint's."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from router.engine import blocks
from router.engine.blocks import FORMS, Q4_1, BlockForm, BlockWeight, quantise_blocks, runs_of
from router.engine.torch_ops import TorchOps
from tests.engine.block_cases import ALL, random_blocks


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_a_block_has_the_numbers_that_gguf_gives_it(form: BlockForm, monkeypatch):
    weight = random_blocks(form, 5, 3)
    kind = gguf.GGMLQuantizationType(form.number)
    assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (form.name, (form.inputs, form.size))
    expected = gguf.quants.dequantize(weight.blocks.numpy(), kind)
    assert np.array_equal(weight.floats().numpy(), expected)
    assert np.array_equal(weight.floats(2, 4).numpy(), expected[2:4])
    monkeypatch.setattr(blocks, "_AT_ONCE", 2 * weight.width)
    assert torch.equal(weight.widened(torch.bfloat16), torch.from_numpy(expected).bfloat16())


def test_neighbours_of_one_form_are_one_run():
    q, k, v = (random_blocks(form, out, 1) for form, out in ((Q4_1, 4), (Q4_1, 2), (FORMS[8], 2)))
    runs = runs_of([q, k, v])
    assert [(run.form.name, run.out) for run in runs] == [("Q4_1", 6), ("Q8_0", 2)]
    assert torch.equal(runs[0].blocks, torch.cat((q.blocks, k.blocks)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_weight_is_off_by_half_a_step_at_most(dtype, monkeypatch):
    monkeypatch.setattr(blocks, "_AT_ONCE", 200)
    weight = torch.randn(7, 96).to(dtype) / 8
    weight[3, 32:64] = 0.25
    made = quantise_blocks(weight)
    assert (made.form, made.out, made.width) == (Q4_1, 7, 96)
    groups = weight.float().view(-1, 32)
    step = (groups.amax(1, True) - groups.amin(1, True)) / 15
    off = (made.floats().view(-1, 32) - groups).abs()
    assert bool((off <= step * 0.5 + groups.abs().amax(1, True) * 2**-10).all())
    assert bool((made.floats()[3, 32:64] == 0.25).all())


def test_numbers_of_16_levels_stay_as_they_are():
    """So does a base that was de-quantised from Q4_1."""
    weight = random_blocks(Q4_1, 6, 4)
    raw = weight.blocks.view(-1, Q4_1.size)
    raw[:, 0:2] = raw[:, 0:2].contiguous().view(torch.float16).abs().view(torch.uint8)
    raw[:, 4], raw[:, 5] = 0xF0, 0x0F  # both ends occur
    again = quantise_blocks(weight.floats())
    assert float((again.floats() - weight.floats()).abs().max()) < 2e-3


def test_what_is_not_finite_shows():
    weight = torch.randn(3, 64)
    weight[1, 5] = torch.nan
    y = TorchOps().pack_blocks([quantise_blocks(weight)], None, torch.float32)(torch.rand(2, 64))
    assert torch.isfinite(y).all(0).tolist() == [True, False, True]


def test_the_bits_of_a_weight():
    assert {form.name: form.bits for form in ALL} == {
        "Q4_0": 4.5,
        "Q4_1": 5.0,
        "Q8_0": 8.5,
        "Q4_K": 4.5,
        "Q6_K": 6.5625,
    }
    assert BlockWeight(Q4_1, torch.zeros(3, 40, dtype=torch.uint8)).nbytes == 120
