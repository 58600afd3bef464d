"""The operations of a step in plain torch: any device and dtype, and the oracle of the native ones."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from router.engine.ops import BLOCK, AttentionPlan, LoraPlan, SiteGroup


class TorchOps:
    """`Ops` on any device, in bfloat16, float16 or float32."""

    name = "torch"

    def pack_b(self, b: torch.Tensor) -> torch.Tensor:
        """[out_total, r], unchanged."""
        return b.contiguous()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Root mean square norm (Zhang & Sennrich 2019) over the last dimension, in float32."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale * weight).to(x.dtype)

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """residual += x in place, then its rms_norm."""
        return self.rms_norm(residual.add_(x), weight, eps)

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
        """Rotary embedding (Su et al. 2021, half-split form) of q and k in place; k and v to the cache."""
        kv_heads, dim = k_cache.shape[1], k_cache.shape[3]
        split = qkv.view(qkv.shape[0], heads + 2 * kv_heads, dim)
        turned = split[:, : heads + kv_heads]
        first, second = turned.float().chunk(2, -1)
        c, s = cos[plan.positions][:, None], sin[plan.positions][:, None]
        turned.copy_(torch.cat((first, second), -1) * c + torch.cat((-second, first), -1) * s)
        block, offset = plan.slots // BLOCK, plan.slots % BLOCK
        k_cache[block, :, offset] = split[:, heads : heads + kv_heads]
        v_cache[block, :, offset] = split[:, heads + kv_heads :]

    def attention(
        self,
        qkv: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        heads: int,
        scale: float,
    ) -> torch.Tensor:
        """Causal attention over the paged cache; rows with one query go together."""
        dim = k_cache.shape[3]
        q = qkv.view(qkv.shape[0], -1, dim)[:, :heads]
        if plan.most_queries == 1:
            return _decode(q, k_cache, v_cache, plan.block_table, plan.context, scale)
        return _mixed(q, k_cache, v_cache, plan, scale)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, the gated unit of Shazeer 2020."""
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    def lora(self, y: torch.Tensor, x: torch.Tensor, plan: LoraPlan, group: SiteGroup) -> None:
        """One product with a, then one with b for each layer, group after group."""
        columns = list(pairwise(group.out_offsets))
        for index, weights in enumerate(plan.weights):
            start, stop = plan.bounds[index], plan.bounds[index + 1]
            if weights is None or start == stop:
                continue
            a, b = weights
            rank = b.shape[1]
            z = x[start:stop] @ a.t()
            rows = y[start:stop]
            for layer, (low, high) in enumerate(columns):
                rows[:, low:high].addmm_(z[:, layer * rank : (layer + 1) * rank], b[low:high].t())


def _decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor,
    context: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One query for each row: q [R, heads, dim] -> [R, heads * dim]. No value leaves the device."""
    rows, heads, dim = q.shape
    kv_heads, length = k_cache.shape[1], table.shape[1] * BLOCK
    flat = table.reshape(-1)
    unseen = torch.arange(length, device=q.device) >= context[:, None]
    shape = (rows, -1, kv_heads, BLOCK, dim)
    k = k_cache.index_select(0, flat).view(shape).transpose(1, 2).reshape(rows, kv_heads, length, dim)
    v = v_cache.index_select(0, flat).view(shape).transpose(1, 2).reshape(rows, kv_heads, length, dim)
    # Weight 0 does not hide a NaN left in a place that is not in use.
    v.masked_fill_(unseen[:, None, :, None], 0)
    folded = q.reshape(rows, kv_heads, heads // kv_heads, dim)
    scores = (folded @ k.transpose(-1, -2)).float().mul_(scale)
    scores.masked_fill_(unseen[:, None, None, :], -torch.inf)
    return (scores.softmax(-1).to(v.dtype) @ v).reshape(rows, heads * dim)


def _mixed(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, plan: AttentionPlan, scale: float
) -> torch.Tensor:
    """Rows with several queries one by one, those with one query in a single call."""
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    bounds, contexts = plan.cu_q.tolist(), plan.context.tolist()
    lengths = [stop - start for start, stop in pairwise(bounds)]
    single = [row for row, length in enumerate(lengths) if length == 1]
    if single:
        pick = torch.tensor(single, device=q.device)
        tokens = plan.cu_q[pick].long()
        blocks = -(-max(contexts[row] for row in single) // BLOCK)
        table = plan.block_table[pick, :blocks]
        out[tokens] = _decode(q[tokens], k_cache, v_cache, table, plan.context[pick], scale)
    for row, length in enumerate(lengths):
        if length > 1:
            used = plan.block_table[row, : -(-contexts[row] // BLOCK)]
            start = bounds[row]
            out[start : start + length] = _prefill(
                q[start : start + length], k_cache[used], v_cache[used], contexts[row], scale
            )
    return out


def _prefill(
    q: torch.Tensor, k_blocks: torch.Tensor, v_blocks: torch.Tensor, context: int, scale: float
) -> torch.Tensor:
    """Queries of one row, the last of its context: q [n, heads, dim] -> [n, heads * dim]."""
    n = q.shape[0]
    k = k_blocks.transpose(0, 1).flatten(1, 2)[None, :, :context]
    v = v_blocks.transpose(0, 1).flatten(1, 2)[None, :, :context]
    mask = None
    if n != context:
        mask = torch.ones(n, context, dtype=torch.bool, device=q.device).tril_(context - n)
    result = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return result[0].transpose(0, 1).reshape(n, -1)
