"""Weights in 8 bits: what rounding costs, and what it does with odd weights."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine import ops as int8
from router.engine.ops import BLOCK, LARGEST, AttentionPlan, quantise
from router.engine.torch_ops import TorchOps
from tests.engine.ops_cases import attention_case, attention_reference, lora_case, lora_reference

OPS = TorchOps()
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("rows", [[(1, 1)], [(1, 16), (1, 17), (1, 50)], [(1, 33), (1, 5)]], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (9, 3, 64), (4, 1, 128)])
def test_decode_attention(rows, heads, kv_heads, dim, dtype):
    case = attention_case(rows, heads, kv_heads, dim, dtype)
    close(case.run(OPS), attention_reference(case), dtype)


@dtypes
@pytest.mark.parametrize(
    "rows",
    [[(7, 7)], [(16, 16), (17, 17)], [(5, 40)], [(1, 20), (9, 9), (1, 3), (4, 33)], [(1, 1), (2, 2)]],
    ids=str,
)
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (4, 0.0), (0, 3.0), (4, 3.0)])
def test_attention_of_prompts_chunks_and_decode_rows_together(rows, window, cap, dtype):
    case = replace(attention_case(rows, heads=6, kv_heads=2, dim=32, dtype=dtype), window=window, cap=cap)
    close(case.run(OPS), attention_reference(case), dtype)


def on_meta(plan: AttentionPlan) -> AttentionPlan:
    """Tensors without values: reading one back raises."""
    named = ((f.name, getattr(plan, f.name)) for f in fields(plan))
    return replace(plan, **{name: v.to("meta") for name, v in named if isinstance(v, torch.Tensor)})


@pytest.mark.parametrize("rows", [[(1, 20), (9, 9), (1, 3), (4, 33)], [(1, 5), (1, 40)], [(3, 3)]], ids=str)
def test_attention_reads_nothing_back_and_brings_rows_once_for_all_layers(rows, monkeypatch):
    case = attention_case(rows, heads=6, kv_heads=2, dim=32, dtype=torch.float32)
    expected = case.run(OPS)
    brought = []
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: brought.append(a) or tensor(*a, **k))
    assert torch.equal(case.run(OPS), expected)  # a second layer of the same step
    assert brought == []
    case.plan = on_meta(replace(case.plan, memo={}))
    case.qkv, case.k_cache, case.v_cache = (t.to("meta") for t in (case.qkv, case.k_cache, case.v_cache))
    for _ in range(3):
        assert case.run(OPS).shape == expected.shape
    assert len(brought) <= 1


@given(
    base_rows=st.integers(0, 3),
    groups=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 2, 4, 16])), max_size=4),
    in_features=st.integers(1, 40),
    outs=st.lists(st.integers(1, 20), min_size=1, max_size=3),
)
def test_lora_equals_one_token_at_a_time(base_rows, groups, in_features, outs):
    case = lora_case(base_rows, groups, in_features, tuple(outs), torch.float32)
    close(case.run(OPS), lora_reference(case), torch.float32)


@dtypes
def test_lora_leaves_base_rows_alone(dtype):
    case = lora_case(3, [(2, 8), (1, 0), (4, 16)], 48, (32, 16, 16), dtype)
    y = case.run(OPS)
    assert torch.equal(y[:3], case.y[:3])
    assert torch.equal(y[5:6], case.y[5:6])
    close(y, lora_reference(case), dtype)


@dtypes
def test_rms_norm(dtype):
    x, weight = torch.randn(5, 48, dtype=dtype), torch.randn(48)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    close(OPS.rms_norm(x, weight, 1e-5), expected, dtype)


@dtypes
def test_add_rms_norm_adds_in_place(dtype):
    residual, x, weight = (torch.randn(*shape, dtype=dtype) for shape in ((3, 32), (3, 32), (32,)))
    added = residual + x
    normed = OPS.add_rms_norm(residual, x, weight, 1e-6)
    assert torch.equal(residual, added)
    assert torch.equal(normed, OPS.rms_norm(added, weight, 1e-6))


@dtypes
def test_rope_rotates_pairs_by_position_and_writes_k_and_v(dtype):
    case = attention_case([(3, 20), (1, 7)], heads=4, kv_heads=2, dim=16, dtype=dtype)
    angles = torch.arange(32)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
    cos, sin = (f(angles).repeat(1, 2) for f in (torch.cos, torch.sin))
    before = case.qkv.double().view(4, 8, 16)
    OPS.rope_write(case.qkv, cos, sin, case.k_cache, case.v_cache, case.plan, case.heads)
    after = case.qkv.view(4, 8, 16)
    pairs = torch.complex(before[..., :8], before[..., 8:])
    turned = pairs * torch.polar(torch.ones(4, 8), angles[case.plan.positions.long()]).to(pairs)[:, None]
    close(after[:, :6], torch.cat((turned.real, turned.imag), -1)[:, :6], dtype)
    assert torch.equal(after[:, 6:].double(), before[:, 6:])
    for token, slot in enumerate(case.plan.slots.tolist()):
        assert torch.equal(case.k_cache[slot // BLOCK, :, slot % BLOCK], after[token, 4:6])
        assert torch.equal(case.v_cache[slot // BLOCK, :, slot % BLOCK], after[token, 6:])


@dtypes
def test_silu_mul(dtype):
    gate_up = torch.randn(5, 24, dtype=dtype)
    gate, up = gate_up.double().chunk(2, -1)
    close(OPS.silu_mul(gate_up), gate * torch.sigmoid(gate) * up, dtype)


@dtypes
@pytest.mark.parametrize("bias", [None, torch.randn(30)], ids=["plain", "bias"])
def test_linear(dtype, bias):
    weight, x = torch.randn(30, 64).to(dtype), torch.randn(5, 64).to(dtype)
    shift = None if bias is None else bias.to(dtype)
    expected = x.double() @ weight.double().t() + (0 if shift is None else shift.double())
    close(OPS.pack_linear(weight, shift)(x) / 8, expected / 8, dtype)


def restored(weight: int8.Int8Weight) -> torch.Tensor:
    return weight.values.double() * weight.scales.double()[:, None]


@given(
    out=st.integers(1, 40),
    width=st.integers(1, 70),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_no_weight_is_off_by_more_than_half_a_scale(out, width, exponent, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, 3, out)[:, None]  # outputs of unlike size: each has its own scale
    weight = (torch.randn(out, width, generator=generator) * spread * 2.0**exponent).to(dtype)
    small = quantise(weight)
    assert (small.values.dtype, small.scales.dtype) == (torch.int8, torch.float32)
    assert (small.values.abs().amax(1) == LARGEST).all()
    off = (restored(small) - weight.double()).abs()
    assert (off <= small.scales.double()[:, None] * 0.5001).all()


def test_whole_numbers_with_a_largest_of_127_come_back_exactly():
    weight = torch.arange(-LARGEST, LARGEST + 1).float()[None] * torch.tensor([[1.0], [0.25]])
    assert torch.equal(restored(quantise(weight)).float(), weight)


def test_many_outputs_are_rounded_in_parts(monkeypatch):
    weight = torch.randn(37, 50)
    whole = quantise(weight)
    monkeypatch.setattr(int8, "_AT_ONCE", 200)
    parts = quantise(weight)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.scales, whole.scales)


def test_an_output_of_zeros_stays_zero():
    small = quantise(torch.zeros(2, 8))
    assert not small.values.any()
    assert not small.scales.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_own_output_alone(bad):
    weight = torch.randn(3, 8)
    weight[1, 5] = bad
    product = restored(quantise(weight)) @ torch.rand(8).double()
    assert torch.isfinite(product).tolist() == [True, False, True]
