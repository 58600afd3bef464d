"""The native operations refuse what would read or write outside of their tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from router.engine.native import NativeOps
from router.engine.native.build import levels, load_module
from router.engine.ops import LoraPlan, SiteGroup
from tests.engine.ops_cases import attention_case

pytestmark = [
    pytest.mark.skipif(not levels(), reason="the CPU has neither AVX2 nor AVX-512"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def native() -> NativeOps:
    return NativeOps(load_module(levels()[0]))


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
def test_attention_plans(native, change, message):
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
def test_rope_plans(native, change, message):
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
def test_cache_shapes(native, heads, cache, dtype):
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
def test_lora_plans(native, starts, row, offsets, message):
    plan = LoraPlan(ints(*starts), torch.tensor([row]), [None], list(starts))
    group = SiteGroup(("layer",), 16, offsets)
    with pytest.raises(RuntimeError, match=message):
        native.lora(torch.zeros(4, 32), torch.zeros(4, 16), plan, group)


def test_linear_of_another_width_or_dtype(native):
    linear = native.pack_linear(torch.zeros(8, 32), torch.zeros(8))
    for x in (torch.zeros(4, 30), torch.zeros(4, 32).bfloat16(), torch.zeros(32, 4).t(), torch.zeros(32)):
        with pytest.raises(RuntimeError):
            linear(x)


def test_dtypes_and_strides(native):
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
