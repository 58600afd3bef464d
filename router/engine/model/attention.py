"""Attention over the paged cache in plain torch, with every feature the interface can ask for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from router.engine.ops import BLOCK, AttentionPlan


@dataclass(frozen=True, slots=True)
class KeyValues:
    """One layer's cache: k [blocks * BLOCK, kv_heads, key_dim], v [..., value_dim]."""

    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def like(cls, key: torch.Tensor, value: torch.Tensor, blocks: int) -> KeyValues:
        """Room for `blocks` blocks of tokens shaped like key and value [1, kv_heads, T, dim]."""
        return cls(
            key.new_empty(blocks * BLOCK, key.shape[1], key.shape[3]),
            value.new_empty(blocks * BLOCK, value.shape[1], value.shape[3]),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.k.nbytes + self.v.nbytes

    def write(self, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """key and value [kv_heads, T, dim] into the places `slots` [T]."""
        places = slots.long()
        self.k[places] = key.transpose(0, 1)
        self.v[places] = value.transpose(0, 1)


def attend(
    query: torch.Tensor,
    cache: KeyValues,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """query [heads, T, dim] -> [T, heads, value_dim]; each row sees its own earlier tokens only."""
    bounds, contexts = plan.cu_q.tolist(), plan.context.tolist()
    out = query.new_empty(query.shape[1], query.shape[0], cache.v.shape[-1])
    for row, context in enumerate(contexts):
        start, end = bounds[row], bounds[row + 1]
        places = _places(plan.block_table[row], context)
        k, v = cache.k[places].transpose(0, 1), cache.v[places].transpose(0, 1)
        mask = _mask(end - start, context, window, query.device)
        rows = query[:, start:end]
        attended = (
            _softcapped(rows, k, v, mask, scale, softcap) if softcap else _sdpa(rows, k, v, mask, scale)
        )
        out[start:end] = attended.transpose(0, 1)
    return out


def _places(blocks: torch.Tensor, context: int) -> torch.Tensor:
    used = blocks[: -(-context // BLOCK)].long()
    offsets = torch.arange(BLOCK, device=blocks.device)
    return (used[:, None] * BLOCK + offsets).flatten()[:context]


def _mask(queries: int, context: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    if queries == 1 and not (window and window < context):
        return None
    seen = torch.arange(context, device=device)
    at = torch.arange(context - queries, context, device=device)[:, None]
    mask = seen <= at
    return mask & (seen > at - window) if window else mask


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    return scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=q.shape[0] != k.shape[0]
    )[0]


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, cap: float
) -> torch.Tensor:
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = torch.tanh(q.float() @ k.float().transpose(1, 2) * (scale / cap)) * cap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype)
