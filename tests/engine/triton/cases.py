"""Every Triton operation against float64 or its torch twin: in the interpreter on the CPU, else on the card.

Not collected by itself: `test_triton.py` runs it in a process of its own, since Triton decides at import.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from router.engine import torch_engine
from router.engine.ops import BLOCK, LoraPlan, LoraStep
from router.engine.runner import PackedBackbone
from router.engine.torch_ops import TorchOps
from router.engine.triton import load_triton_ops
from router.engine.triton import ops as triton_ops
from router.engine.triton.ops import INNER_SPLIT, INTERPRETED, OUTS, ROWS, SPLIT, TritonOps
from tests.engine import tiny
from tests.engine.ops_cases import (
    AttentionCase,
    LoraCase,
    attention_case,
    attention_reference,
    lora_case,
    lora_reference,
)

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
OPS, TORCH = TritonOps(), TorchOps()
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
examples = settings(max_examples=15, deadline=None)


def moved(value: Any) -> Any:
    """A case with all its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, AttentionCase | LoraCase) or type(value).__name__ == "AttentionPlan":
        return replace(value, **{f.name: moved(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor | tuple) for v in value):
        return type(value)(moved(v) for v in value)
    return value


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu().double(), rtol=0, atol=TOLERANCE[dtype] * scale
    )


def attended(case: AttentionCase) -> torch.Tensor:
    return moved(case).run(OPS)


def added(case: LoraCase) -> torch.Tensor:
    return moved(case).run(OPS)


# -- Attention


@examples
@dtypes
@given(
    contexts=st.lists(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 130]), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (2, 2), (9, 3), (6, 1), (14, 2), (40, 1)]),
    dim=st.sampled_from([16, 24, 64, 80, 128, 256]),
    seed=st.integers(0, 99),
)
def test_decode_attention(contexts, heads, dim, seed, dtype):
    case = attention_case([(1, context) for context in contexts], *heads, dim, dtype, seed)
    close(attended(case), attention_reference(case), dtype)


@dtypes
@pytest.mark.parametrize("context", [SPLIT - 1, SPLIT, SPLIT + 1, 3 * SPLIT + 5])
def test_contexts_of_several_splits_beside_short_ones(context, dtype):
    case = attention_case([(1, context), (1, 3), (1, SPLIT)], 6, 2, 32, dtype)
    close(attended(case), attention_reference(case), dtype)


@dtypes
@pytest.mark.parametrize("rows", [[(7, 7)], [(1, 20), (9, 9), (1, 300), (4, 33)], [(5, 40), (1, 1)]], ids=str)
def test_prompts_chunks_and_decode_rows_together(rows, dtype):
    case = attention_case(rows, 6, 2, 32, dtype)
    close(attended(case), attention_reference(case), dtype)


def test_scores_far_apart():
    case = attention_case([(1, 200), (1, 600)], 4, 2, 32, torch.float32)
    case.scale = 10.0
    close(attended(case), attention_reference(case), torch.float32)


@dtypes
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_batch(dtype):
    case = attention_case([(1, 50), (1, 700), (1, 17), (1, 256)], 6, 2, 64, dtype)
    together = attended(case)
    plan = case.plan
    for row in range(4):
        alone = replace(
            plan,
            cu_q=torch.tensor([0, 1], dtype=torch.int32),
            context=plan.context[row : row + 1],
            block_table=plan.block_table[row : row + 1, : -(-plan.contexts[row] // BLOCK)],
            bounds=[0, 1],
            contexts=[plan.contexts[row]],
        )
        one = AttentionCase(case.qkv[row : row + 1], case.k_cache, case.v_cache, alone, 6, case.scale)
        assert torch.equal(attended(one)[0], together[row])


def test_a_row_without_context_is_zero_and_hurts_nobody():
    """What pads a batch: its block holds NaN and is not read."""
    case = attention_case([(1, 20), (1, 1)], 4, 2, 16, torch.float32)
    expected = attended(case)
    case.plan = replace(case.plan, context=torch.tensor([20, 0], dtype=torch.int32))
    case.k_cache[case.plan.block_table[1, 0]] = torch.nan
    out = attended(case)
    assert torch.equal(out[0], expected[0])
    assert not out[1].any()


# -- Adapters


@examples
@dtypes
@given(
    base_rows=st.integers(0, 3),
    groups=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, ROWS, ROWS + 1, 40]), st.sampled_from([0, 2, 8, 16, 18, 64])),
        max_size=5,
    ),
    in_features=st.sampled_from([1, 31, 64, 100, INNER_SPLIT + 30]),
    outs=st.lists(st.sampled_from([1, 7, 16, OUTS, OUTS + 2, 192]), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_lora(base_rows, groups, in_features, outs, seed, dtype):
    case = lora_case(base_rows, groups, in_features, tuple(outs), dtype, seed)
    close(added(case), lora_reference(case), dtype)


@dtypes
def test_lora_touches_only_rows_with_weights(dtype):
    case = lora_case(3, [(2, 8), (4, 0), (1, 16)], 64, (48, 16, 16), dtype)
    y = added(case).cpu()
    assert torch.equal(y[:3], case.y[:3])
    assert torch.equal(y[5:9], case.y[5:9])
    assert not torch.equal(y[3:5], case.y[3:5])


@dtypes
def test_lora_of_32_adapters_of_different_ranks(dtype):
    case = lora_case(1, [(1 + i % 3, 2 * (1 + i)) for i in range(32)], 96, (64, 32, 32), dtype)
    close(added(case), lora_reference(case), dtype)


def test_lora_of_rank_512():
    case = lora_case(0, [(2, 512), (1, 2)], 64, (40,), torch.float32)
    close(added(case), lora_reference(case), torch.float32)


@dtypes
def test_an_adapters_row_is_the_same_to_the_bit_alone_and_in_any_batch(dtype):
    case = lora_case(2, [(5, 4), (40, 64), (6, 2)], 1100, (96, 40), dtype)
    together = added(case)
    for token in (2, 6, 7, 7 + ROWS - 1, 7 + ROWS, 46, 47, 48):
        assert torch.equal(added(case.only(token))[0], together[token])


def test_lora_keeps_its_hidden_values_in_float32():
    """Two of a pair cancel: rounded to bfloat16, what is left would be wrong by far."""
    x = torch.full((1, 64), 1.0).bfloat16()
    a = torch.stack((torch.full((64,), 1.0), torch.full((64,), 1.0)))
    a[0, 0] = 1.25
    b = torch.tensor([[1.0, -1.0]] * 16)
    case = LoraCase(
        x,
        torch.zeros(1, 16).bfloat16(),
        [(a.bfloat16(), b.bfloat16())],
        [0, 1],
        lora_case(0, [], 64, (16,), torch.bfloat16).group,
    )
    assert torch.equal(added(case).cpu(), torch.full((1, 16), 0.25).bfloat16())


def test_adapters_change_by_the_content_of_the_table():
    """The same launch reads other weights: nothing but addresses and ranks is bound to a set of adapters."""
    case = moved(lora_case(0, [(2, 8), (3, 4)], 64, (32,), torch.float32))
    swapped = LoraCase(case.x, case.y, [case.weights[0], case.weights[0]], case.bounds, case.group)
    plan, other = case.plan(OPS), swapped.plan(OPS)
    device_plan = replace(plan, table=plan.table.to(DEVICE))
    y = case.y.clone()
    OPS.lora(y, case.x, device_plan, case.group)
    close(y, lora_reference(case), torch.float32)
    device_plan.table.copy_(other.table)
    y = case.y.clone()
    OPS.lora(y, case.x, device_plan, case.group)
    close(y, swapped.run(TORCH), torch.float32)


# -- The rest


@dtypes
@pytest.mark.parametrize("shape", [(1, 16), (5, 100), (3, 7), (40, 576), (0, 64)])
def test_norms_and_gate(shape, dtype):
    x, residual, gate_up = torch.randn(3, *shape).mul(4).to(DEVICE, dtype).unbind()
    weight = torch.randn(shape[1]).to(DEVICE, dtype)
    close(OPS.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5), dtype)
    kept = residual.clone()
    close(OPS.add_rms_norm(residual, x, weight, 1e-5), TORCH.add_rms_norm(kept, x, weight, 1e-5), dtype)
    close(residual, kept, dtype)
    wide = torch.cat((gate_up, x), 1)
    close(OPS.silu_mul(wide), TORCH.silu_mul(wide), dtype)


@dtypes
def test_gate_of_extreme_values(dtype):
    largest = 6e4 if dtype == torch.float16 else 1e30
    gate = torch.tensor([[-largest, -200.0, -90.0, 0.0, 90.0, largest, torch.nan] * 5]).to(DEVICE, dtype)
    gate_up = torch.cat((gate, torch.ones_like(gate)), 1)
    torch.testing.assert_close(
        OPS.silu_mul(gate_up), TORCH.silu_mul(gate_up), rtol=1e-2, atol=1e-6, equal_nan=True
    )


@dtypes
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (9, 3, 64), (2, 1, 80), (8, 2, 128)])
def test_rope_write(heads, kv_heads, dim, dtype):
    case, twin = (
        moved(attention_case([(1, 40), (7, 20), (3, 3)], heads, kv_heads, dim, dtype)) for _ in "ab"
    )
    cos, sin = torch.randn(2, 64, dim).to(DEVICE).unbind()
    OPS.rope_write(case.qkv, cos, sin, case.k_cache, case.v_cache, case.plan, heads)
    TORCH.rope_write(twin.qkv, cos, sin, twin.k_cache, twin.v_cache, twin.plan, heads)
    close(case.qkv, twin.qkv, dtype)
    for ours, theirs in ((case.k_cache, twin.k_cache), (case.v_cache, twin.v_cache)):
        assert torch.equal(ours.isnan(), theirs.isnan())
        close(ours.nan_to_num(), theirs.nan_to_num(), dtype)


# -- What no kernel covers is plain torch's, bit for bit.


def test_other_layouts_and_dtypes_are_plain_torchs():
    x, weight = torch.randn(6, 8, device=DEVICE).t(), torch.randn(6, device=DEVICE)
    assert torch.equal(OPS.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    assert torch.equal(OPS.rms_norm(x.double(), weight, 1e-5), TORCH.rms_norm(x.double(), weight, 1e-5))
    halves = torch.randn(8, 6, device=DEVICE)[:, :4]
    assert torch.equal(OPS.silu_mul(halves), TORCH.silu_mul(halves))
    wide = moved(attention_case([(1, 20), (1, 5)], 2, 1, 320, torch.float32))
    assert torch.equal(wide.run(OPS), wide.run(TORCH))
    four = moved(lora_case(0, [(3, 4)], 16, (8, 8, 8, 8), torch.float32))
    assert torch.equal(four.run(OPS), four.run(TORCH))


# -- Chosen only where it agrees with plain torch


@dtypes
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_it_is_chosen_where_it_agrees(head_dim, dtype):
    ops, text = load_triton_ops(DEVICE, dtype, head_dim)
    assert (ops.name, text) == ("triton", "triton")


def doubled(out: torch.Tensor) -> torch.Tensor:
    return out * 2


WRONG = {
    "rms_norm": lambda self, x, w, eps: doubled(TORCH.rms_norm(x, w, eps)),
    "add_rms_norm": lambda self, r, x, w, eps: TORCH.rms_norm(r + x, w, eps),  # leaves the residual as it was
    "silu_mul": lambda self, g: TORCH.silu_mul(g) + torch.nan,
    "rope_write": lambda self, *a: None,
    "attention": lambda self, *a: doubled(TORCH.attention(*a)),
    "lora": lambda self, y, x, plan, group: TORCH.lora(y[:, :], x * 1.5, plan, group),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_that_differs_is_not_chosen(name, monkeypatch):
    monkeypatch.setattr(TritonOps, name, WRONG[name])
    ops, text = load_triton_ops(DEVICE, torch.float32, 64)
    assert ops.name == "torch"
    assert name in text
    assert text.endswith("differs from plain torch's")


def test_one_that_raises_is_not_chosen(monkeypatch):
    def broken(*_: Any) -> str:
        raise RuntimeError("no driver")

    monkeypatch.setattr(triton_ops, "disagreement", broken)
    ops, text = load_triton_ops(DEVICE, torch.float32, 64)
    assert (ops.name, text) == ("torch", "torch: Triton's operations do not run here: RuntimeError")


# -- Whole answers


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
async def test_a_mixed_batch_equals_peft_alone(kind, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch_engine, "load_ops", lambda *_: (OPS, "triton"))
    made = tiny.engine(kind, device=str(DEVICE), max_step_tokens=24)
    tuned, digests = {}, {}
    for seed, (name, rank) in enumerate((("a", 4), ("b", 8))):
        targets = ["q_proj", "v_proj", "o_proj", "down_proj", "up_proj"]
        tuned[name] = tiny.save_adapter(kind, tmp_path / name, seed, r=rank, target_modules=targets)
        artifact = tiny.artifact(tmp_path / name, made)
        await made.load(artifact)
        digests[name] = artifact.digest
    models, rng = tuned | {None: tiny.model(kind)}, random.Random(0)
    work = [(name, [rng.randrange(256) for _ in range(rng.randint(3, 40))]) for name in ("a", None, "b", "a")]
    answers = await asyncio.gather(
        *(tiny.answer(made, tokens, digests.get(name), max_tokens=6) for name, tokens in work)
    )
    made.close()
    for (name, tokens), (ids, _) in zip(work, answers, strict=True):
        expected = tiny.reference(models[name], tokens, 6)
        assert ids == [t for t in expected if t != tiny.SHAPE["eos_token_id"]]


@dtypes
def test_logits_of_a_step_are_plain_torchs(dtype):
    """Base and adapter rows that decode. Each rounds in its own places, so it is the mean that is near."""
    case = attention_case([(1, 20), (1, 40), (1, 5)], 4, 2, 16, dtype)
    found = []
    for ops in (OPS, TORCH):
        model = tiny.model("llama").to(DEVICE, dtype)
        backbone = PackedBackbone(*tiny.parts(model), ops, len(case.k_cache), 256)
        for layer in backbone._model.layers:
            layer.k_cache.copy_(case.k_cache)
            layer.v_cache.copy_(case.v_cache)
        plans: list[LoraPlan] = []
        for number, group in enumerate(backbone.groups):
            outs = tuple(b - a for a, b in pairwise(group.out_offsets))
            adapters = moved(lora_case(1, [(1, 8), (1, 4)], group.in_features, outs, dtype, number))
            plans.append(adapters.plan(ops))
        step = LoraStep(plans[0].starts, torch.stack([plan.table for plan in plans]), [*plans])
        tokens = torch.tensor([1, 2, 3], device=DEVICE)
        with torch.inference_mode():
            found.append(backbone.forward(tokens, moved(case.plan), step, torch.arange(3, device=DEVICE)))
    ours, theirs = (logits.double() for logits in found)
    assert (ours - theirs).square().mean().sqrt() < 5 * TOLERANCE[dtype] * theirs.square().mean().sqrt()
