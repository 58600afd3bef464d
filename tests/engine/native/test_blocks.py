"""Linear layers with weights in 4 bits: native against twin and float64, on all instruction sets at hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.blocks import BlockWeight
from router.engine.runner import PackedBackbone
from router.engine.torch_ops import TorchOps
from tests.engine import tiny
from tests.engine.block_cases import random_blocks
from tests.engine.native.test_int8 import check_one_call, close
from tests.engine.ops_cases import compiled, dtypes, examples

TORCH = TorchOps()
pytestmark = compiled


def reference(x: torch.Tensor, weight: BlockWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """In float64, over the blocks' own numbers."""
    y = x.double() @ weight.floats().double().t()
    return y if bias is None else y + bias.double()


@examples
@dtypes
@given(
    rows=st.integers(0, 40),
    blocks=st.integers(1, 3),
    out=st.sampled_from([1, 7, 16, 32, 40, 100, 576]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear(native, dtype, rows, blocks, out, bias, seed):
    weight = random_blocks(out, blocks, seed)
    x = torch.randn(rows, weight.width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    shift = torch.randn(out).to(dtype) if bias else None
    found, expected = native.pack_blocks(weight, shift, dtype)(x), reference(x, weight, shift)
    assert found.dtype == dtype
    close(found, expected)
    close(TORCH.pack_blocks(weight, shift, dtype)(x), expected)


@dtypes
def test_every_number_is_exact_whatever_its_place(native, dtype):
    """Each input alone: what comes out is one weight, rounded once."""
    weight = random_blocks(70, 1, seed=3)
    x = torch.eye(weight.width, dtype=dtype)
    found = native.pack_blocks(weight, None, dtype)(x)
    torch.testing.assert_close(
        found.t(), weight.floats().to(dtype), rtol=2**-7 if dtype != torch.float32 else 1e-6, atol=1e-6
    )


@dtypes
def test_a_row_is_bit_for_bit_the_same_alone_in_a_batch_and_on_any_threads(native, dtype):
    weight = random_blocks(200, 3)
    linear = native.pack_blocks(weight, torch.randn(200).to(dtype), dtype)
    x = torch.randn(45, weight.width).to(dtype)
    before, native.threads = native.threads, 2
    try:
        together = linear(x)
        native.threads = 1
        for rows in range(1, 45):
            assert torch.equal(linear(x[:rows]), together[:rows])
            assert torch.equal(linear(x[rows:]), together[rows:])
    finally:
        native.threads = before


@dtypes
def test_4_bits_are_those_of_the_twin(native, dtype):
    weight = torch.randn(37, 96).to(dtype) / 16
    weight[3, :32], weight[4, :32], weight[5, 40] = 0.25, 0.0, 4.0
    weight[20, 7] = torch.inf
    found, expected = native.quantise_blocks(weight), TORCH.quantise_blocks(weight)
    whole = [row for row in range(37) if row != 20]
    same = (found.blocks[whole] == expected.blocks[whole]).float().mean()
    assert float(same) > 0.99  # sums in another order may fit another scale
    torch.testing.assert_close(found.floats()[whole], expected.floats()[whole], rtol=0.1, atol=0.02)
    assert not found.floats()[20, :32].isfinite().any()
    with pytest.raises(RuntimeError, match="whole groups"):
        native.quantise_blocks(weight[:, :33].contiguous())


def test_endless_and_tiny_scales_show(native):
    """float16 is turned to float32 by hand where the processor does not."""
    weight = random_blocks(6, 1)
    scales = torch.tensor([torch.inf, -torch.inf, torch.nan, 65504.0, 2.0**-24, -0.0]).half()
    weight.blocks[:, :2] = scales.view(torch.uint8).view(6, 2)
    weight.blocks[:, 2:4] = 0
    x = torch.zeros(1, 32)
    x[0, 0] = 1.0
    weight.blocks[:, 4] = 0x01  # the first weight is the scale
    y = native.pack_blocks(weight, None, torch.float32)(x)[0]
    assert y[:2].isinf().all() or y[:2].isnan().all()
    assert not y[2].isfinite()
    assert y[3:].tolist() == [65504.0, 2.0**-24, 0.0]


def test_another_width_or_dtype_is_refused(native):
    linear = native.pack_blocks(random_blocks(8, 2), torch.zeros(8), torch.float32)
    for x in (torch.zeros(4, 32), torch.zeros(4, 96), torch.zeros(4, 64).bfloat16(), torch.zeros(64)):
        with pytest.raises(RuntimeError):
            linear(x)


@pytest.mark.parametrize("change", ["shorter", "int8", "panels", "scales", "flat"])
def test_what_does_not_fit_is_refused(native, change):
    linear = native.pack_blocks(random_blocks(40, 1), None, torch.float32)
    packed = linear.weights[0]
    given = {
        "shorter": (packed[:, :-1].contiguous(), None, None),
        "int8": (packed.view(torch.int8), None, None),
        "panels": (torch.cat((packed, packed)), None, None),
        "scales": (packed, torch.zeros(len(packed) * native._panel), None),
        "flat": (packed.flatten(), None, None),
    }[change]
    with pytest.raises(RuntimeError):
        native._native.linear(torch.zeros(1, 32), given, 40)


@pytest.mark.parametrize("change", ["width", "empty", "place", "type"])
def test_blocks_that_do_not_fit_are_not_packed(native, change):
    blocks, to = torch.zeros(4, 20, dtype=torch.uint8), torch.zeros(1, 20 * native._panel, dtype=torch.uint8)
    native._native.pack_blocks(blocks, to)
    blocks, to = {
        "width": (blocks[:, 1:].contiguous(), to),
        "empty": (blocks[:, :0].contiguous(), to[:, :0].contiguous()),
        "place": (blocks, to[:, 1:].contiguous()),
        "type": (blocks.view(torch.int8), to),
    }[change]
    with pytest.raises(RuntimeError):
        native._native.pack_blocks(blocks, to)


@dtypes
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_a_stack_in_one_call_is_its_operations_one_by_one(native, dtype, tokens):
    parts = [tiny.parts(tiny.model("qwen2").to(dtype)) for _ in range(2)]
    one, other = (PackedBackbone(*some, native, 4, 64, "int4") for some in parts)
    assert one._model.layers[0].qkv.weights[0].dtype == torch.uint8
    check_one_call(native, one, other, tokens)
