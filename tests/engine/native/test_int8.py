"""Linear layers with weights in 8 bits: native against twin and float64, on all instruction sets at hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.native.ops import NativeOps, NativeStack
from router.engine.ops import AttentionPlan, Int8Weight, quantise
from router.engine.runner import PackedBackbone
from router.engine.torch_ops import OneByOne, TorchOps
from tests.engine import tiny
from tests.engine.ops_cases import compiled, dtypes, examples

TORCH = TorchOps()
pytestmark = compiled


def reference(x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """In float64, over the rounded weights."""
    y = x.double() @ (weight.values.double() * weight.scales.double()[:, None]).t()
    return y if bias is None else y + bias.double()


def close(actual: torch.Tensor, expected: torch.Tensor, roundings: int = 1) -> None:
    tolerance = 1e-5 if actual.dtype == torch.float32 else roundings * 2**-8
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1.0))


@examples
@dtypes
@given(
    rows=st.integers(0, 40),
    width=st.sampled_from([1, 2, 8, 30, 33, 64, 576]),
    out=st.sampled_from([1, 7, 16, 32, 40, 100, 576]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear(native, dtype, rows, width, out, bias, seed):
    torch.manual_seed(seed)
    weight, x = quantise(torch.randn(out, width).to(dtype)), torch.randn(rows, width).to(dtype)
    shift = torch.randn(out).to(dtype) if bias else None
    found, expected = native.pack_int8(weight, shift, dtype)(x), reference(x, weight, shift)
    assert found.dtype == dtype
    close(found, expected, 1 if width % 2 == 0 else 2)  # an odd width of bfloat16 is the twin's
    close(TORCH.pack_int8(weight, shift, dtype)(x), expected, 2)


@dtypes
@pytest.mark.parametrize("rows", [1, 64], ids=["on the way", "once for all"])
def test_every_number_of_8_bits_is_exact(native, dtype, rows):
    """Each input alone: what comes out is one weight, whatever its place in a panel."""
    numbers = torch.arange(-127, 128, dtype=torch.int8)
    values = torch.stack(
        [numbers.roll(5 * i) for i in range(64)], 1
    )  # [255, 64]: all of them in every column
    linear = native.pack_int8(Int8Weight(values, torch.ones(255)), None, dtype)
    x = torch.eye(64, dtype=dtype)
    found = torch.cat([linear(x[i : i + rows]) for i in range(0, 64, rows)])
    assert torch.equal(found.to(torch.int8), values.t())


@dtypes
def test_a_row_is_bit_for_bit_the_same_alone_in_a_batch_and_on_any_threads(native, dtype):
    linear = native.pack_int8(quantise(torch.randn(200, 96)), torch.randn(200).to(dtype), dtype)
    x = torch.randn(45, 96).to(dtype)
    before, native.threads = native.threads, 2
    try:
        together = linear(x)
        native.threads = 1
        for rows in range(1, 45):
            assert torch.equal(linear(x[:rows]), together[:rows])
    finally:
        native.threads = before


def test_what_is_not_finite_shows(native):
    weight = torch.randn(3, 8)
    weight[1, 5] = torch.nan
    y = native.pack_int8(quantise(weight), None, torch.float32)(torch.rand(2, 8))
    assert torch.isfinite(y).all(0).tolist() == [True, False, True]


def test_another_width_or_dtype_is_refused(native):
    linear = native.pack_int8(quantise(torch.ones(8, 32)), torch.zeros(8), torch.float32)
    for x in (torch.zeros(4, 30), torch.zeros(4, 32).bfloat16(), torch.zeros(32, 4).t(), torch.zeros(32)):
        with pytest.raises(RuntimeError):
            linear(x)


@pytest.mark.parametrize("change", ["int16", "float scales", "fewer scales", "no scales"])
def test_what_does_not_fit_is_refused(native, change):
    linear = native.pack_int8(quantise(torch.ones(40, 32)), None, torch.float32)
    packed, scales, *_ = linear.weights
    given = {
        "int16": (packed.short(), scales),
        "float scales": (packed, scales.double()),
        "fewer scales": (packed, scales[:40]),
        "no scales": (packed, None),
    }[change]
    with pytest.raises(RuntimeError):
        native._native.linear(torch.zeros(1, 32), (*given, None), 40)


def check_one_call(native: NativeOps, one: PackedBackbone, other: PackedBackbone, tokens: int) -> None:
    """A stack in one call is its operations one by one, to the bit, cache included."""
    assert isinstance(one.stack, NativeStack)
    other._stack = OneByOne(other._model, native)
    places = torch.arange(tokens, dtype=torch.int32)
    plan = AttentionPlan(
        cu_q=torch.tensor([0, tokens], dtype=torch.int32),
        context=torch.tensor([tokens], dtype=torch.int32),
        block_table=torch.arange(4, dtype=torch.int32)[None],
        positions=places,
        slots=places,
        most_queries=tokens,
        bounds=[0, tokens],
        contexts=[tokens],
    )
    with torch.inference_mode():
        for backbone in (one, other):
            for layer in backbone._model.layers:
                layer.k_cache.zero_()
                layer.v_cache.zero_()
        asked = torch.randint(0, 255, (tokens,))
        for _ in range(2):  # sums of inputs that a thread keeps are the step's own
            found, expected = (b.forward(asked, plan, None, places.long()) for b in (one, other))
            assert torch.equal(found, expected)
            asked = asked.flip(0)
    for a, b in zip(one._model.layers, other._model.layers, strict=True):
        assert torch.equal(a.k_cache, b.k_cache)
        assert torch.equal(a.v_cache, b.v_cache)


@dtypes
@pytest.mark.parametrize(("kind", "tokens"), [("qwen2", 1), ("qwen2", 7), ("qwen2", 40), ("gemma3", 40)])
def test_a_stack_in_one_call_is_its_operations_one_by_one(native, dtype, kind, tokens):
    one, other = (
        PackedBackbone(*tiny.parts(tiny.model(kind).to(dtype)), native, 4, 64, "int8") for _ in range(2)
    )
    check_one_call(native, one, other, tokens)
