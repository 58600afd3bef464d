"""Every native operation against its torch twin, and what it refuses, on all instruction sets at hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.ops import LoraPlan, SiteGroup
from router.engine.torch_ops import TorchOps
from tests.engine.ops_cases import (
    attention_case,
    attention_reference,
    compiled,
    dtypes,
    examples,
    laid,
    lora_case,
)

TORCH = TorchOps()
pytestmark = compiled


@pytest.fixture
def threads(native):
    """Two, and how to change that."""
    before = native.threads
    native.threads = 2

    def change(number: int) -> None:
        native.threads = number

    yield change
    native.threads = before


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """float32: 1e-5 of the largest value; bfloat16: four roundings, since the twin rounds scores too."""
    tolerance = 1e-5 if actual.dtype == torch.float32 else 2**-6
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(scale, 1.0))


@examples
@dtypes
@given(
    rows=st.integers(0, 30),
    width=st.sampled_from([2, 8, 30, 64, 576]),
    out=st.sampled_from([1, 7, 16, 32, 40, 100, 576]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear(native, dtype, rows, width, out, bias, seed):
    torch.manual_seed(seed)
    weight, x = torch.randn(out, width).to(dtype), torch.randn(rows, width).to(dtype)
    shift = torch.randn(out).to(dtype) if bias else None
    close(native.pack_linear(weight, shift)(x), TORCH.pack_linear(weight, shift)(x))


@dtypes
def test_linear_is_bit_for_bit_the_same_alone_in_a_batch_and_on_any_threads(native, threads, dtype):
    linear = native.pack_linear(torch.randn(200, 96).to(dtype), torch.randn(200).to(dtype))
    x = torch.randn(29, 96).to(dtype)
    together = linear(x)
    threads(1)
    for rows in range(1, 29):
        assert torch.equal(linear(x[:rows]), together[:rows])


@dtypes
def test_linear_of_odd_width(native, dtype):
    weight, x = torch.randn(16, 33).to(dtype), torch.randn(3, 33).to(dtype)
    close(native.pack_linear(weight, None)(x), TORCH.pack_linear(weight, None)(x))


ranks = st.sampled_from([0, 2, 4, 6, 8, 16, 32, 64])
lora_shapes = {
    "base_rows": st.integers(0, 3),
    "groups": st.lists(st.tuples(st.sampled_from([0, 1, 1, 2, 3, 5, 33]), ranks), max_size=5),
    "in_features": st.sampled_from([1, 8, 31, 32, 64, 100, 576]),
    "outs": st.lists(st.sampled_from([1, 7, 16, 24, 64, 130, 192]), min_size=1, max_size=3),
    "seed": st.integers(0, 99),
}


@examples
@dtypes
@given(**lora_shapes)
def test_lora(native, dtype, base_rows, groups, in_features, outs, seed):
    case = lora_case(base_rows, groups, in_features, tuple(outs), dtype, seed)
    close(case.run(native), case.run(TORCH))


@dtypes
def test_lora_touches_only_rows_with_weights(native, dtype):
    case = lora_case(3, [(2, 8), (4, 0), (1, 16)], 64, (48, 16, 16), dtype)
    y = case.run(native)
    assert torch.equal(y[:3], case.y[:3])
    assert torch.equal(y[5:9], case.y[5:9])
    assert not torch.equal(y[3:5], case.y[3:5])


@dtypes
@pytest.mark.parametrize("groups", [[(16, 16)], [(2, 16)] * 8, [(70, 8), (1, 8)], [(5, 4), (5, 64), (6, 2)]])
def test_lora_is_bit_for_bit_the_same_alone_in_a_batch_and_on_any_threads(native, threads, dtype, groups):
    case = lora_case(2, groups, 100, (96, 40), dtype)
    together = case.run(native)
    threads(1)
    assert torch.equal(case.run(native), together)
    for token in range(2, len(case.y)):
        alone = case.only(token)
        assert torch.equal(alone.run(native)[0], together[token])


heads = st.sampled_from([(1, 1), (2, 2), (9, 3), (6, 1), (8, 2), (14, 2), (40, 1)])
rows = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 5, 16, 35]), st.integers(0, 90)).map(lambda r: (r[0], sum(r))),
    min_size=1,
    max_size=4,
)


@examples
@dtypes
@given(
    rows=rows,
    heads=heads,
    dim=st.sampled_from([16, 32, 48, 64, 80, 128, 256]),
    window=st.sampled_from([0, 0, 1, 7, 40]),
    cap=st.sampled_from([0.0, 0.0, 2.5]),
    seed=st.integers(0, 99),
)
def test_attention(native, dtype, rows, heads, dim, window, cap, seed):
    case = replace(attention_case(rows, *heads, dim, dtype, seed), window=window, cap=cap)
    close(case.run(native), case.run(TORCH))


@dtypes
@pytest.mark.parametrize(("context", "window"), [(70, 0), (300, 90), (300, 3)])
def test_attention_is_bit_for_bit_the_same_in_chunks_and_on_any_threads(
    native, threads, dtype, context, window
):
    whole = replace(attention_case([(50, context)], 6, 2, 64, dtype), window=window)
    expected = whole.run(native)
    threads(1)
    assert torch.equal(whole.run(native), expected)
    caches = laid(native, whole.k_cache, whole.v_cache)
    for token in range(50):
        plan = whole.plan_of(token)
        alone = native.attention(whole.qkv[token][None], *caches, plan, 6, whole.scale, window)
        assert torch.equal(alone[0], expected[token])


@dtypes
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (30, 0.0), (30, 50.0)])
def test_attention_with_scores_far_apart(native, dtype, window, cap):
    case = replace(attention_case([(1, 200), (20, 150)], 4, 2, 32, dtype), window=window, cap=cap)
    case.scale = 10.0
    torch.testing.assert_close(
        case.run(native).double(),
        attention_reference(case),
        rtol=0,
        atol=1e-4 if dtype == torch.float32 else 2e-2,
    )


@dtypes
@pytest.mark.parametrize("shape", [(1, 16), (5, 100), (3, 7), (70, 576)])
def test_norms_and_gate(native, dtype, shape):
    x, residual, gate_up = torch.randn(3, *shape, dtype=dtype).mul(4).unbind()
    weight = torch.randn(shape[1])
    close(native.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    kept = residual.clone()
    close(native.add_rms_norm(residual, x, weight, 1e-5), TORCH.add_rms_norm(kept, x, weight, 1e-5))
    assert torch.equal(residual, kept)
    wide = torch.cat((gate_up, x), 1)
    close(native.silu_mul(wide), TORCH.silu_mul(wide))
    close(native.gelu_mul(wide), TORCH.gelu_mul(wide))
    close(native.cap(x.clone(), 3.0), TORCH.cap(x, 3.0))


@dtypes
def test_gate_of_extreme_values(native, dtype):
    gate = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 1e30, torch.nan] * 5], dtype=dtype)
    gate_up = torch.cat((gate, torch.ones_like(gate)), 1)
    for name in ("silu_mul", "gelu_mul"):
        found, expected = (getattr(ops, name)(gate_up) for ops in (native, TORCH))
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-30, equal_nan=True)


@dtypes
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "turned"), [(4, 4, 16, 0), (9, 3, 64, 0), (2, 1, 80, 0), (8, 2, 128, 96)]
)
def test_rope_write(native, dtype, heads, kv_heads, dim, turned):
    case = attention_case([(1, 40), (7, 20), (3, 3)], heads, kv_heads, dim, dtype)
    twin = attention_case([(1, 40), (7, 20), (3, 3)], heads, kv_heads, dim, dtype)
    cos, sin = torch.randn(2, 64, turned or dim).unbind()
    caches = laid(native, case.k_cache, case.v_cache)
    native.rope_write(case.qkv, cos, sin, *caches, case.plan, heads)
    TORCH.rope_write(twin.qkv, cos, sin, twin.k_cache, twin.v_cache, twin.plan, heads)
    close(case.qkv, twin.qkv)
    for ours, theirs in zip(caches, laid(native, twin.k_cache, twin.v_cache), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        close(ours.nan_to_num(), theirs.nan_to_num())


# -- Refused is what would read or write outside of the tensors.


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_table": torch.full((1, 3), 99, dtype=torch.int32)}, "block_table"),
        ({"block_table": torch.full((1, 3), -1, dtype=torch.int32)}, "block_table"),
        ({"block_table": torch.zeros(2, 3, dtype=torch.int32)}, "block_table"),
        ({"context": ints(49)}, "context"),
        ({"context": ints(3)}, "context"),
        ({"cu_q": ints(0, 5)}, "cu_q"),
        ({"cu_q": ints(0, 2, 4)}, "cu_q"),
        ({"context": torch.tensor([20])}, "context"),
    ],
)
def test_bad_attention_plans_are_refused(native, change, message):
    case = attention_case([(4, 20)], 2, 1, 16, torch.float32)
    case.plan = replace(case.plan, **change)
    with pytest.raises(RuntimeError, match=message):
        case.run(native)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": ints(1, 2, 3, 1 << 20)}, "slots"),
        ({"slots": ints(-1, 2, 3, 4)}, "slots"),
        ({"slots": ints(1, 2, 3)}, "plan"),
        ({"positions": ints(0, 1, 2, 32)}, "positions"),
    ],
)
def test_bad_rope_plans_are_refused(native, change, message):
    case = attention_case([(4, 20)], 2, 1, 16, torch.float32)
    table = torch.zeros(32, 16)
    with pytest.raises(RuntimeError, match=message):
        native.rope_write(
            case.qkv, table, table, case.k_cache, case.v_cache, replace(case.plan, **change), case.heads
        )


@pytest.mark.parametrize(
    ("heads", "cache", "dtype"),
    [
        (3, (4, 2, 16, 16), torch.float32),
        (2, (4, 2, 8, 16), torch.float32),
        (2, (4, 2, 16, 24), torch.float32),
        (2, (4, 2, 16, 16), torch.bfloat16),
        (4, (4, 2, 16, 16), torch.float32),
    ],
)
def test_bad_cache_shapes_are_refused(native, heads, cache, dtype):
    case = attention_case([(4, 20)], 2, 2, 16, torch.float32)
    case.heads, case.k_cache, case.v_cache = (
        heads,
        torch.zeros(cache, dtype=dtype),
        torch.zeros(cache, dtype=dtype),
    )
    with pytest.raises(RuntimeError):
        case.run(native)


@pytest.mark.parametrize(
    ("starts", "row", "offsets", "message"),
    [
        ((0, 5), (1, 1, 2), (0, 32), "starts"),
        ((-1, 2), (1, 1, 2), (0, 32), "starts"),
        ((3, 2), (1, 1, 2), (0, 32), "starts"),
        ((0, 1, 2), (1, 1, 2), (0, 32), "table"),
        ((0, 2), (1, 1, 3), (0, 32), "rank"),
        ((0, 2), (1, 1, -2), (0, 32), "rank"),
        ((0, 2), (0, 1, 2), (0, 32), "address"),
        ((0, 2), (1, 1, 2), (0, 48), "offsets"),
        ((0, 2), (1, 1, 2), (0, 40, 32), "offsets"),
        ((0, 2), (1, 1, 2), (32,), "offsets"),
    ],
)
def test_bad_lora_plans_are_refused(native, starts, row, offsets, message):
    plan = LoraPlan(ints(*starts), torch.tensor([row]), [None], list(starts))
    group = SiteGroup(("layer",), 16, offsets)
    with pytest.raises(RuntimeError, match=message):
        native.lora(torch.zeros(4, 32), torch.zeros(4, 16), plan, group)


def test_a_linear_refuses_another_width_or_dtype(native):
    linear = native.pack_linear(torch.zeros(8, 32), torch.zeros(8))
    for x in (torch.zeros(4, 30), torch.zeros(4, 32).bfloat16(), torch.zeros(32, 4).t(), torch.zeros(32)):
        with pytest.raises(RuntimeError):
            linear(x)


def test_bad_dtypes_and_strides_are_refused(native):
    x, weight = torch.zeros(4, 32), torch.ones(32)
    for bad_x, bad_weight in (
        (x.double(), weight.double()),
        (x, weight.bfloat16()),
        (x.t(), torch.ones(4)),
        (x, torch.ones(31)),
        (x[0], weight),
    ):
        with pytest.raises(RuntimeError):
            native.rms_norm(bad_x, bad_weight, 1e-5)
    with pytest.raises(RuntimeError, match="residual"):
        native.add_rms_norm(x[:3], x, weight, 1e-5)
    with pytest.raises(RuntimeError, match="odd"):
        native.silu_mul(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="odd"):
        native.pack_b(torch.zeros(8, 3, dtype=torch.bfloat16))
