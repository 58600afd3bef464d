"""Random steps for tests of the operations: paged caches, rows of any length, groups of adapters."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import HealthCheck, settings

from router.engine.native.build import cpu_levels
from router.engine.ops import BLOCK, AttentionPlan, LoraPlan, SiteGroup
from router.engine.torch_ops import TorchOps

compiled = [
    pytest.mark.skipif(not cpu_levels(), reason="the CPU has neither AVX2 nor AVX-512"),
    pytest.mark.timeout(600),  # the first run compiles
]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
examples = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass
class AttentionCase:
    qkv: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    plan: AttentionPlan
    heads: int
    scale: float
    window: int = 0
    cap: float = 0.0

    def run(self, ops: TorchOps) -> torch.Tensor:
        k_cache, v_cache = laid(ops, self.k_cache, self.v_cache)
        options = (self.scale, self.window, self.cap)
        return ops.attention(self.qkv, k_cache, v_cache, self.plan, self.heads, *options)

    def plan_of(self, token: int) -> AttentionPlan:
        """The plan of one token of the only row, as if it were decoded."""
        context = int(self.plan.context[0]) - len(self.qkv) + token + 1
        return AttentionPlan(
            cu_q=torch.tensor([0, 1], dtype=torch.int32),
            context=torch.tensor([context], dtype=torch.int32),
            block_table=self.plan.block_table,
            positions=self.plan.positions[token][None],
            slots=self.plan.slots[token][None],
            most_queries=1,
            bounds=[0, 1],
            contexts=[context],
        )


def laid(ops: TorchOps, k_cache: torch.Tensor, v_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Caches [blocks, kv_heads, BLOCK, dim] as `ops` lays them."""
    if ops.name != "native":
        return k_cache, v_cache
    blocks, heads, keys, dim = k_cache.shape
    per = 1 if k_cache.dtype == torch.float32 else 2
    k = k_cache.view(blocks, heads, keys, dim // per, per).permute(0, 1, 3, 2, 4)
    v = v_cache.view(blocks, heads, keys // per, per, dim).transpose(3, 4)
    return k.reshape(k_cache.shape).contiguous(), v.reshape(v_cache.shape).contiguous()


def attention_case(
    rows: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, dtype: torch.dtype, seed: int = 0
) -> AttentionCase:
    """rows: (queries, context). Blocks are scattered; every place that is not in use holds NaN."""
    rng = torch.Generator().manual_seed(seed)
    counts = [-(-context // BLOCK) for _, context in rows]
    pool = (torch.randperm(sum(counts), generator=rng) + 1).int()
    k_cache = torch.full((sum(counts) + 2, kv_heads, BLOCK, dim), torch.nan, dtype=dtype)
    v_cache = k_cache.clone()
    table = torch.zeros(len(rows), max(counts) + 1, dtype=torch.int32)
    positions, slots = [], []
    for row, (queries, context) in enumerate(rows):
        table[row, : counts[row]], pool = pool[: counts[row]], pool[counts[row] :]
        places = torch.arange(context)
        blocks, offsets = table[row, places // BLOCK].long(), places % BLOCK
        for cache in (k_cache, v_cache):
            cache[blocks, :, offsets] = torch.randn(context, kv_heads, dim, generator=rng).to(dtype)
        positions.append(places[-queries:])
        slots.append((blocks * BLOCK + offsets)[-queries:])
    lengths = [queries for queries, _ in rows]
    plan = AttentionPlan(
        cu_q=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        context=torch.tensor([context for _, context in rows], dtype=torch.int32),
        block_table=table,
        positions=torch.cat(positions).int(),
        slots=torch.cat(slots).int(),
        most_queries=max(lengths),
        bounds=[0, *accumulate(lengths)],
        contexts=[context for _, context in rows],
    )
    qkv = torch.randn(sum(lengths), (heads + 2 * kv_heads) * dim, generator=rng).to(dtype)
    return AttentionCase(qkv, k_cache, v_cache, plan, heads, dim**-0.5)


@dataclass
class LoraCase:
    x: torch.Tensor
    y: torch.Tensor
    weights: list[tuple[torch.Tensor, torch.Tensor] | None]
    bounds: list[int]
    group: SiteGroup

    def run(self, ops: TorchOps) -> torch.Tensor:
        """A copy of y with the groups' products added."""
        y = self.y.clone()
        ops.lora(y, self.x, self.plan(ops), self.group)
        return y

    def plan(self, ops: TorchOps) -> LoraPlan:
        packed = [w and (ops.pack_a(w[0]), ops.pack_b(w[1])) for w in self.weights]
        table = [
            (w[0].data_ptr(), w[1].data_ptr(), given[1].shape[1]) if w and given else (0, 0, 0)
            for w, given in zip(packed, self.weights, strict=True)
        ]
        return LoraPlan(
            starts=torch.tensor(self.bounds, dtype=torch.int32, device=self.x.device),
            table=torch.tensor(table, dtype=torch.int64).view(-1, 3),
            weights=packed,
            bounds=self.bounds,
        )

    def only(self, token: int) -> LoraCase:
        """That token alone."""
        index = next(g for g, stop in enumerate(self.bounds[1:]) if token < stop)
        here = slice(token, token + 1)
        return LoraCase(self.x[here], self.y[here], [self.weights[index]], [0, 1], self.group)


def lora_case(
    base_rows: int,
    groups: list[tuple[int, int]],
    in_features: int,
    outs: tuple[int, ...],
    dtype: torch.dtype,
    seed: int = 0,
) -> LoraCase:
    """groups: (tokens, rank); rank 0: no weights at this site."""
    rng = torch.Generator().manual_seed(seed)
    bounds = list(accumulate([base_rows, *(tokens for tokens, _ in groups)]))
    total, layers = sum(outs), len(outs)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=rng) * scale).to(dtype)

    weights = [
        (random(layers * rank, in_features, scale=in_features**-0.5), random(total, rank)) if rank else None
        for _, rank in groups
    ]
    group = SiteGroup(tuple(f"layer{i}" for i in range(layers)), in_features, (0, *accumulate(outs)))
    return LoraCase(random(bounds[-1], in_features), random(bounds[-1], total), weights, bounds, group)


def lora_reference(case: LoraCase) -> torch.Tensor:
    """Token by token in float64."""
    y = case.y.double()
    for weights, (start, stop) in zip(case.weights, pairwise(case.bounds), strict=True):
        if weights is None:
            continue
        a, b = (w.double() for w in weights)
        rank = b.shape[1]
        for token in range(start, stop):
            z = a @ case.x[token].double()
            for layer, (low, high) in enumerate(pairwise(case.group.out_offsets)):
                y[token, low:high] += b[low:high] @ z[layer * rank : (layer + 1) * rank]
    return y


def attention_reference(case: AttentionCase) -> torch.Tensor:
    """Query by query in float64, over the places the plan names and no other."""
    _, kv_heads, _, dim = case.k_cache.shape
    out = torch.empty(case.qkv.shape[0], case.heads, dim, dtype=torch.float64)
    for row, (start, stop) in enumerate(pairwise(case.plan.cu_q.tolist())):
        for token in range(start, stop):
            end = int(case.plan.context[row]) - (stop - token) + 1
            seen = torch.arange(max(0, end - case.window) if case.window else 0, end)
            blocks = case.plan.block_table[row, seen // BLOCK].long()
            k = case.k_cache[blocks, :, seen % BLOCK].double()
            v = case.v_cache[blocks, :, seen % BLOCK].double()
            q = case.qkv[token].double().view(-1, dim)[: case.heads]
            for head in range(case.heads):
                shared = head // (case.heads // kv_heads)
                scores = k[:, shared] @ q[head] * case.scale
                if case.cap:
                    scores = (scores / case.cap).tanh() * case.cap
                out[token, head] = scores.softmax(0) @ v[:, shared]
    return out.flatten(1)
