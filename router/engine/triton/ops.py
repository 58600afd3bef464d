"""Operations over the Triton kernels: a launch or two for each, and no value on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import torch
import triton

from router.engine.ops import BLOCK, AttentionPlan, LoraPlan, SiteGroup
from router.engine.torch_ops import TorchOps, mixed_attention
from router.engine.triton import kernels

INTERPRETED = bool(triton.knobs.runtime.interpret)  # on the CPU, for tests
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST_NORM = 32768
WIDEST_HEAD = 256
TILE = 1024  # of the gated unit
SPLIT = 256  # tokens of a context that one program reads
ROWS, RANKS = 16, 16  # tokens and ranks of an adapter's product at a time
INNER, INNER_SPLIT = 64, 1024  # inputs at a time, and of one program
OUTS = 128


class TritonOps(TorchOps):
    """On a CUDA device. What no kernel covers, plain torch does: prompts, wide heads, other layouts."""

    name = "triton"

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [T, hidden] -> same shape; statistics in float32."""
        if not _covered(x) or x.shape[-1] > WIDEST_NORM:
            return super().rms_norm(x, weight, eps)
        return _normed(x, x, weight, eps, add=False)

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """residual += x in place, then its rms_norm."""
        if not _covered(residual, x) or x.shape[-1] > WIDEST_NORM:
            return super().add_rms_norm(residual, x, weight, eps)
        return _normed(x, residual, weight, eps, add=True)

    def rope_write(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        heads: int,
    ) -> None:
        """Rotate q and k in place, write k and v to the cache."""
        kv_heads, dim = k_cache.shape[1], k_cache.shape[3]
        if not _covered(qkv, k_cache, v_cache) or cos.shape[1] != dim or dim % 2 or not len(qkv):
            super().rope_write(qkv, cos, sin, k_cache, v_cache, plan, heads)
            return
        kernels.rope_write[(len(qkv), heads + 2 * kv_heads)](
            qkv,
            cos,
            sin,
            k_cache,
            v_cache,
            plan.positions,
            plan.slots,
            heads,
            kv_heads,
            dim,
            HALF=triton.next_power_of_2(dim // 2),
            BLOCK=BLOCK,
            num_warps=1,
        )

    def attention(
        self,
        qkv: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        heads: int,
        scale: float,
        window: int = 0,
        cap: float = 0.0,
    ) -> torch.Tensor:
        """Causal attention over the paged cache; all rows with one query at once, prompts in plain torch."""
        kv_heads, dim = k_cache.shape[1], k_cache.shape[3]
        covered = _covered(qkv, k_cache, v_cache) and dim <= WIDEST_HEAD and heads % kv_heads == 0
        if not covered or window or cap:
            return super().attention(qkv, k_cache, v_cache, plan, heads, scale, window, cap)
        q = qkv.view(len(qkv), -1, dim)[:, :heads]
        if plan.most_queries == 1:
            return _decode(q, k_cache, v_cache, plan.block_table, plan.context, scale)
        return mixed_attention(q, k_cache, v_cache, plan, scale, _decode)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[T, 2 * inner] -> [T, inner]."""
        if not _covered(gate_up):
            return super().silu_mul(gate_up)
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, inner)
        if rows:
            kernels.silu_mul[(rows, triton.cdiv(inner, TILE))](gate_up, out, inner, TILE=TILE)
        return out

    def lora(self, y: torch.Tensor, x: torch.Tensor, plan: LoraPlan, group: SiteGroup) -> None:
        """y += (x @ a.T) @ b for each group's tokens, over the adapters' addresses; z in float32."""
        layers = len(group.names)
        if not _covered(y, x) or layers > 3:
            super().lora(y, x, plan, group)
            return
        ranks = [0 if pair is None else pair[0].shape[0] // layers for pair in plan.weights]
        most = max((stop - start for start, stop in pairwise(plan.bounds)), default=0)
        if not most or not any(ranks):
            return
        columns = layers * max(ranks)
        rank_tiles, tiles = triton.cdiv(columns, RANKS), triton.cdiv(most, ROWS)
        splits = triton.cdiv(group.in_features, INNER_SPLIT)
        z = torch.empty(splits, len(x), columns, dtype=torch.float32, device=x.device)
        table = _table(plan, x.device)
        kernels.lora_shrink[(tiles, splits * rank_tiles, len(ranks))](
            x,
            z,
            plan.starts,
            table,
            len(x),
            group.in_features,
            layers,
            columns,
            rank_tiles,
            ROWS=ROWS,
            RANKS=RANKS,
            INNER=INNER,
            SPLIT=INNER_SPLIT,
            WIDE=_wide(x),
        )
        outs = group.out_offsets[-1]
        kernels.lora_expand[(tiles, triton.cdiv(outs, OUTS), len(ranks))](
            y,
            z,
            plan.starts,
            table,
            len(x),
            outs,
            group.out_offsets[1] if layers > 1 else outs,
            group.out_offsets[2] if layers > 2 else outs,
            columns,
            splits,
            LAYERS=layers,
            ROWS=ROWS,
            RANKS=RANKS,
            TILE=OUTS,
        )


def _covered(*tensors: torch.Tensor) -> bool:
    first = tensors[0].dtype
    return first in DTYPES and all(t.dtype == first and t.is_contiguous() for t in tensors)


def _wide(x: torch.Tensor) -> bool:
    return INTERPRETED or x.dtype == torch.float32


def _normed(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, add: bool
) -> torch.Tensor:
    out, width = torch.empty_like(x), x.shape[-1]
    if x.numel():
        kernels.rms_norm[(x.numel() // width,)](
            x, residual, weight, out, width, eps, ADD=add, WIDTH=triton.next_power_of_2(width)
        )
    return out


def _table(plan: LoraPlan, device: torch.device) -> torch.Tensor:
    """The adapters' addresses and ranks where the kernels read them."""
    if plan.table.device == device and plan.table.is_contiguous():
        return plan.table
    if "table" not in plan.memo:
        plan.memo["table"] = plan.table.to(device).contiguous()
    return plan.memo["table"]


def _decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor,
    context: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One query for each row: q [R, heads, dim] -> [R, heads * dim]."""
    rows, heads, dim = q.shape
    kv_heads = k_cache.shape[1]
    group, wide = heads // kv_heads, triton.next_power_of_2(max(dim, 16))
    splits = triton.cdiv(table.shape[1] * BLOCK, SPLIT)
    parts = torch.empty(rows, heads, splits, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(rows, heads, splits, 2, dtype=torch.float32, device=q.device)
    out = torch.empty(rows, heads * dim, dtype=q.dtype, device=q.device)
    kernels.decode_splits[(rows, kv_heads, splits)](
        q,
        k_cache,
        v_cache,
        table,
        context,
        parts,
        sums,
        q.stride(0),
        table.stride(0),
        dim,
        group,
        kv_heads,
        splits,
        scale,
        GROUP=triton.next_power_of_2(max(group, 16)),
        DIM=wide,
        TILE=64 if wide <= 128 else 32,
        SPLIT=SPLIT,
        BLOCK=BLOCK,
        WIDE=_wide(q),
        num_stages=2,
    )
    kernels.decode_join[(rows, heads)](
        parts, sums, context, out, heads, splits, dim, DIM=wide, SPLIT=SPLIT, num_warps=1
    )
    return out


Results = Iterator[tuple[str, torch.Tensor]]
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_KV_HEADS, _GROUP = 2, 3
_ROWS = ((1, 1), (1, 20), (1, 300))  # queries, context
_PROMPTS = ((1, 20), (5, 40), (1, 3))


def disagreement(ops: TorchOps, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Empty if `ops` does as plain torch does, else which operation does not."""
    ours, theirs = (_run(made, device, dtype, head_dim) for made in (ops, TorchOps()))
    for (name, found), (_, expected) in zip(ours, theirs, strict=True):
        allowed = _TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
        if not float((found.float() - expected.float()).abs().max()) <= allowed:  # a NaN is no agreement
            return f"{name} differs from plain torch's"
    return ""


def _run(ops: TorchOps, device: torch.device, dtype: torch.dtype, head_dim: int) -> Results:
    """Every operation on the same random numbers."""
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).to(device, dtype)

    x, residual, weight = random(5, 160), random(5, 160), random(160).float()
    yield "rms_norm", ops.rms_norm(x, weight, 1e-5)
    yield "add_rms_norm", ops.add_rms_norm(residual, x, weight, 1e-5)
    yield "the sum of add_rms_norm", residual
    yield "silu_mul", ops.silu_mul(x)
    for rows in (_ROWS, _PROMPTS):
        yield from _attention(ops, random, rows, head_dim)
    for layers in (1, 2, 3):
        yield from _lora(ops, random, layers)


def _attention(
    ops: TorchOps, random: Callable[..., torch.Tensor], rows: tuple[tuple[int, int], ...], dim: int
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


def _lora(ops: TorchOps, random: Callable[..., torch.Tensor], layers: int) -> Results:
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
