"""Linear layers with weights in blocks: native against twin and float64, on all instruction sets at hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.blocks import FORMS, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, BlockWeight
from router.engine.native.ops import NativeLinear
from router.engine.runner import PackedBackbone
from router.engine.torch_ops import TorchOps
from tests.engine import tiny
from tests.engine.block_cases import ALL, random_blocks
from tests.engine.native.test_int8 import check_one_call, close
from tests.engine.ops_cases import compiled, dtypes, examples

TORCH = TorchOps()
pytestmark = compiled
forms = pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)


def reference(x: torch.Tensor, weights: list[BlockWeight], bias: torch.Tensor | None) -> torch.Tensor:
    """In float64, over the blocks' own numbers."""
    y = x.double() @ torch.cat([weight.floats() for weight in weights]).double().t()
    return y if bias is None else y + bias.double()


@examples
@dtypes
@given(
    form=st.sampled_from(ALL),
    rows=st.integers(0, 40),
    blocks=st.integers(1, 3),
    out=st.sampled_from([1, 7, 16, 32, 40, 100, 576]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear(native, dtype, form, rows, blocks, out, bias, seed):
    weight = random_blocks(form, out, blocks, seed)
    x = torch.randn(rows, weight.width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    shift = torch.randn(out).to(dtype) if bias else None
    found, expected = native.pack_blocks([weight], shift, dtype)(x), reference(x, [weight], shift)
    assert found.dtype == dtype
    close(found, expected)
    close(TORCH.pack_blocks([weight], shift, dtype)(x), expected)


@dtypes
@forms
def test_every_number_is_exact_whatever_its_place(native, dtype, form):
    """Each input alone: what comes out is one weight, rounded once."""
    weight = random_blocks(form, 70, 1, seed=3)
    x = torch.eye(weight.width, dtype=dtype)
    found = native.pack_blocks([weight], None, dtype)(x)
    torch.testing.assert_close(
        found.t(), weight.widened(dtype), rtol=2**-7 if dtype != torch.float32 else 1e-6, atol=1e-6
    )


@dtypes
@forms
def test_a_row_is_bit_for_bit_the_same_alone_in_a_batch_and_on_any_threads(native, dtype, form):
    weight = random_blocks(form, 200, 1 if form.inputs > 32 else 3)
    linear = native.pack_blocks([weight], torch.randn(200).to(dtype), dtype)
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
def test_forms_may_change_from_panel_to_panel(native, dtype):
    """As q, k and v of one layer differ in a file."""
    q, k, v = random_blocks(Q4_K, 64, 2), random_blocks(Q4_K, 32, 2), random_blocks(Q6_K, 40, 2)
    linear = native.pack_blocks([q, k, v], None, dtype)
    assert [form for form, _ in linear.weights[3]] == [12, 14]
    x = torch.randn(11, q.width).to(dtype)
    together = linear(x)
    alone = [native.pack_blocks([weight], None, dtype)(x) for weight in (q, k, v)]
    assert torch.equal(together, torch.cat(alone, 1))


def test_forms_that_change_inside_a_panel_are_widened(native):
    weights = [random_blocks(Q4_0, 24, 3), random_blocks(Q8_0, 24, 3)]
    linear = native.pack_blocks(weights, None, torch.float32)
    assert isinstance(linear, NativeLinear)
    assert linear.weights[3] == []
    x = torch.randn(3, 96)
    close(linear(x), reference(x, weights, None))


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
    weight = random_blocks(Q4_1, 6, 1)
    scales = torch.tensor([torch.inf, -torch.inf, torch.nan, 65504.0, 2.0**-24, -0.0]).half()
    weight.blocks[:, :2] = scales.view(torch.uint8).view(6, 2)
    weight.blocks[:, 2:4] = 0
    x = torch.zeros(1, 32)
    x[0, 0] = 1.0
    weight.blocks[:, 4] = 0x01  # the first weight is the scale
    y = native.pack_blocks([weight], None, torch.float32)(x)[0]
    assert y[:2].isinf().all() or y[:2].isnan().all()
    assert not y[2].isfinite()
    assert y[3:].tolist() == [65504.0, 2.0**-24, 0.0]


def test_another_width_or_dtype_is_refused(native):
    linear = native.pack_blocks([random_blocks(Q4_1, 8, 2)], torch.zeros(8), torch.float32)
    for x in (torch.zeros(4, 32), torch.zeros(4, 96), torch.zeros(4, 64).bfloat16(), torch.zeros(64)):
        with pytest.raises(RuntimeError):
            linear(x)


@pytest.mark.parametrize("change", ["shorter", "int8", "panels", "scales", "another form", "no form"])
def test_what_does_not_fit_is_refused(native, change):
    linear = native.pack_blocks([random_blocks(Q4_1, 40, 1)], None, torch.float32)
    packed, _, _, [(form, panels)] = linear.weights
    given = {
        "shorter": (packed[:-1], None, None, [(form, panels)]),
        "int8": (packed.view(torch.int8), None, None, [(form, panels)]),
        "panels": (packed, None, None, [(form, panels + 1)]),
        "scales": (packed, torch.zeros(panels * 32), None, [(form, panels)]),
        "another form": (packed, None, None, [(Q4_0.number, panels)]),
        "no form": (packed, None, None, [(5, panels)]),
    }[change]
    with pytest.raises(RuntimeError):
        native._native.linear(torch.zeros(1, 32), given, 40)


@pytest.mark.parametrize("change", ["width", "size", "form", "place"])
def test_blocks_that_do_not_fit_are_not_packed(native, change):
    blocks, to = torch.zeros(4, 20, dtype=torch.uint8), torch.zeros(5120, dtype=torch.uint8)
    form, width = Q4_1.number, 32
    blocks, form, width, to = {
        "width": (blocks, form, 33, to),
        "size": (blocks[:, 1:].contiguous(), form, width, to),
        "form": (blocks, 99, width, to),
        "place": (blocks, form, width, to),
    }[change]
    with pytest.raises(RuntimeError):
        native._native.pack_blocks(blocks, form, width, True, to)


@dtypes
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_a_stack_in_one_call_is_its_operations_one_by_one(native, dtype, tokens):
    parts = [tiny.parts(tiny.model("qwen2").to(dtype)) for _ in range(2)]
    one, other = (PackedBackbone(*some, native, 4, 64, "int4") for some in parts)
    assert one._model.layers[0].qkv.weights[3] == [(Q4_1.number, -(-128 // native._panel))]
    check_one_call(native, one, other, tokens)


def test_all_forms_are_known_here():
    assert set(FORMS) == {2, 3, 8, 12, 14}


@dtypes
@forms
def test_rows_are_given_back_as_they_are_in_the_file(native, dtype, form):
    weight = random_blocks(form, 70, 2)
    linear = native.pack_blocks([weight], None, dtype)
    rows = torch.tensor([69, 0, 31, 32, 0])
    found = torch.empty(len(rows), weight.width, dtype=dtype)
    native.row_reader(linear).rows(rows, found)
    assert torch.equal(found, weight.widened(dtype)[rows])
    with pytest.raises(RuntimeError):
        linear.rows(torch.tensor([70]), found[:1])
