"""Operations compared with plain torch before they serve, on the device and in the dtype they will have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import torch

from router.engine.ops import BLOCK, AttentionPlan, LoraPlan, Ops, SiteGroup
from router.engine.torch_ops import TorchOps

Results = Iterator[tuple[str, torch.Tensor]]
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_KV_HEADS, _GROUP = 2, 3
_ROWS = ((1, 1), (1, 20), (1, 300))  # queries, context
_PROMPTS = ((1, 20), (5, 40), (1, 3))


def disagreement(ops: Ops, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Empty if `ops` does as plain torch does, else which operation does not."""
    ours, theirs = (_run(made, device, dtype, head_dim) for made in (ops, TorchOps()))
    for (name, found), (_, expected) in zip(ours, theirs, strict=True):
        allowed = _TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
        if not float((found.float() - expected.float()).abs().max()) <= allowed:  # a NaN is no agreement
            return f"{name} differs from plain torch's"
    return ""


def _run(ops: Ops, device: torch.device, dtype: torch.dtype, head_dim: int) -> Results:
    """Every operation on the same random numbers."""
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).to(device, dtype)

    x, residual, weight = random(5, 160), random(5, 160), random(160)
    yield "rms_norm", ops.rms_norm(x, weight, 1e-5)
    yield "add_rms_norm", ops.add_rms_norm(residual, x, weight, 1e-5)
    yield "the sum of add_rms_norm", residual
    yield "silu_mul", ops.silu_mul(x)
    for rows in (_ROWS, _PROMPTS):
        yield from _attention(ops, random, rows, head_dim)
    for layers in (1, 2, 3):
        yield from _lora(ops, random, layers)


def _attention(
    ops: Ops, random: Callable[..., torch.Tensor], rows: tuple[tuple[int, int], ...], dim: int
) -> Results:
    heads = _KV_HEADS * _GROUP
    counts = [-(-context // BLOCK) for _, context in rows]
    caches = random(2, sum(counts), _KV_HEADS, BLOCK, dim)
    plan = _plan(rows, counts, caches.device)
    qkv, angles = random(plan.bounds[-1], (heads + 2 * _KV_HEADS) * dim), random(300, dim).float()
    ops.rope_write(qkv, angles.cos(), angles.sin(), caches[0], caches[1], plan, heads)
    yield "rope_write", qkv
    yield "the cache of rope_write", caches
    yield "attention", ops.attention(qkv, caches[0], caches[1], plan, heads, dim**-0.5)


def _plan(rows: tuple[tuple[int, int], ...], counts: list[int], device: torch.device) -> AttentionPlan:
    """Each row's blocks one behind the other, unused entries of the table 0."""

    def ints(values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    firsts = list(accumulate(counts, initial=0))[:-1]
    blocks = [range(first, first + n) for first, n in zip(firsts, counts, strict=True)]
    table = [[*own, *[0] * (max(counts) - len(own))] for own in blocks]
    bounds = list(accumulate((queries for queries, _ in rows), initial=0))
    positions = [list(range(context - queries, context)) for queries, context in rows]
    slots = [first * BLOCK + at for first, ats in zip(firsts, positions, strict=True) for at in ats]
    contexts = [context for _, context in rows]
    return AttentionPlan(
        cu_q=ints(bounds),
        context=ints(contexts),
        block_table=ints(table),
        positions=ints([at for ats in positions for at in ats]),
        slots=ints(slots),
        most_queries=max(queries for queries, _ in rows),
        bounds=bounds,
        contexts=contexts,
    )


def _lora(ops: Ops, random: Callable[..., torch.Tensor], layers: int) -> Results:
    """Two rows of the base, then groups of other ranks, one of them without weights."""
    width, outs, ranks, bounds = 1056, (48, 32, 160)[:layers], (8, 0, 34), [2, 5, 6, 24]
    weights = [
        (ops.pack_a(random(layers * rank, width) / 32), ops.pack_b(random(sum(outs), rank))) if rank else None
        for rank in ranks
    ]
    rows = [
        (pair[0].data_ptr(), pair[1].data_ptr(), rank) if pair else (0, 0, 0)
        for pair, rank in zip(weights, ranks, strict=True)
    ]
    x, y = random(bounds[-1], width), random(bounds[-1], sum(outs))
    starts = torch.tensor(bounds, dtype=torch.int32, device=x.device)
    plan = LoraPlan(starts, torch.tensor(rows, dtype=torch.int64), list(weights), bounds)
    names = tuple(f"layer{i}" for i in range(layers))
    ops.lora(y, x, plan, SiteGroup(names, width, tuple(accumulate(outs, initial=0))))
    for start, stop in pairwise([0, *bounds]):
        if start < stop:
            yield f"lora of {layers} layers", y[start:stop]
