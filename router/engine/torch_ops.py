"""The operations of a step in plain torch: any device and dtype, and the oracle of the native ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from router.engine.blocks import BlockWeight, parts, quantise_blocks
from router.engine.ops import (
    BLOCK,
    AttentionPlan,
    ChosenToken,
    Experts,
    FileRows,
    Int8Weight,
    Layer,
    Linear,
    LoraPlan,
    LoraStep,
    PackedModel,
    RowsLinear,
    SiteGroup,
    Stack,
    TokenChoice,
)
from router.engine.sampling import TorchChooser

# q [R, heads, dim], k_cache, v_cache, block_table [R, blocks], context [R], scale -> [R, heads * dim]
Decode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


class TorchOps:
    """On any device, in bfloat16, float16 or float32.

    Fused operations (`native`, `triton`) are subclasses, which agree with it up to rounding.
    LoRA weights of one adapter at one site group, rank r the same for all k layers (zero-padded, even):
      a [k * r, in], rows of layer i at i*r:(i+1)*r; scaling is folded into b.
      b [out_total, r]; column o of y belongs to layer i and reads z[:, i*r:(i+1)*r].
    So they are here; native, they are flat, as `pack_a` and `pack_b` leave them.
    """

    name = "torch"

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """weight [out, in], bias [out] -> a function x [T, in] -> [T, out]; may keep a packed copy.

        On the CPU that is in oneDNN's blocked layout, which is faster.
        """
        if weight.device.type == "cpu" and torch._C._has_mkldnn:
            with suppress(RuntimeError):  # oneDNN has no bfloat16 or float16 on this CPU
                return _onednn_linear(weight.contiguous(), bias)
        return lambda x: F.linear(x, weight, bias)

    def pack_int8(self, weight: Int8Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> Linear:
        """The same with weights in 8 bits for x and y of `dtype`; sums in float32 get scale and bias last.

        They are exact in `dtype`, and widened at each call.
        """
        values, scales = weight.values, weight.scales
        shift = None if bias is None else bias.float()

        def linear(x: torch.Tensor) -> torch.Tensor:
            y = F.linear(x, values.to(dtype)).float() * scales
            return (y if shift is None else y + shift).to(dtype)

        return linear

    def quantise_blocks(self, weight: torch.Tensor) -> BlockWeight:
        """weight [out, in], `in` in whole groups, in 4 bits. What is not finite stays visibly broken."""
        return quantise_blocks(weight)

    def pack_blocks(self, weight: BlockWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> Linear:
        """The same with weights in 4 bits, widened to float32 at each call; sums get the bias last."""
        shift = None if bias is None else bias.float()
        places = parts(weight.out, weight.width)

        def linear(x: torch.Tensor) -> torch.Tensor:
            wide = x.float()
            y = torch.cat([F.linear(wide, weight.floats(*place)) for place in places], 1)
            return (y if shift is None else y + shift).to(dtype)

        return linear

    def pack_files(
        self, parts: Sequence[FileRows], bias: torch.Tensor | None, dtype: torch.dtype, *, int8: bool
    ) -> Linear | None:
        """Weights read from files and packed one below the other, with no copy of them in between.

        As `pack_linear` of them in `dtype`, or with `int8` as `pack_int8` of what `quantise` makes of that.
        None where whole tensors are packed, as here. Raises EOFError where a file is too short.
        """
        return None

    def row_reader(self, linear: Linear) -> RowsLinear | None:
        """The same layer, if it gives rows of its weight back as they were; here it may have any layout."""
        return None

    def pack_a(self, a: torch.Tensor) -> torch.Tensor:
        """[k * r, in] into the layout that `lora` reads."""
        return a

    def pack_b(self, b: torch.Tensor) -> torch.Tensor:
        """[out_total, r] into the layout that `lora` reads."""
        return b.contiguous()

    def unpack_a(self, packed: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """What `pack_a` made that of, [rows, width]; may share its memory."""
        return packed.view(rows, width)

    def unpack_b(self, packed: torch.Tensor, rows: int, rank: int) -> torch.Tensor:
        """What `pack_b` made that of, [rows, rank]; may share its memory."""
        return packed.view(rows, rank)

    def stack(self, model: PackedModel) -> Stack:
        """The layers of a model, whose linear layers `pack_linear` made; here operation by operation."""
        return OneByOne(model, self)

    def choose(self, logits: torch.Tensor, choices: Sequence[TokenChoice]) -> list[ChosenToken]:
        """A token for each row of logits [S, vocabulary], which stay as they are, by its own `TokenChoice`.

        A row whose logits hold NaN or whose largest is not finite fails alone; so does one that has nothing
        left to choose from. A result depends on its own row only.
        """
        return self._chooser.choose(logits, choices)

    @cached_property
    def _chooser(self) -> TorchChooser:
        return TorchChooser()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Root mean square norm (Zhang & Sennrich 2019): x [T, hidden], weight float32 [hidden] -> as x.

        In float32 until it is rounded once.
        """
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
        """Rotary embedding (Su et al. 2021, half-split form) of q and k in place; k and v to the cache.

        cos and sin float32 [positions, n]: the first n numbers of each head are rotated.
        qkv [T, (heads + 2 * kv_heads) * head_dim].
        """
        kv_heads, dim = k_cache.shape[1], k_cache.shape[3]
        split = qkv.view(qkv.shape[0], heads + 2 * kv_heads, dim)
        if cos.shape[1]:
            turned = split[:, : heads + kv_heads, : cos.shape[1]]
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
        window: int = 0,
        cap: float = 0.0,
    ) -> torch.Tensor:
        """Causal attention of q (in qkv) over the cache -> [T, heads * head_dim]; softmax in float32.

        Query j of a row with n queries and context c sees cache positions 0 .. c - n + j, with a `window`
        only the last so many of them. With a `cap`, scores are cap * tanh(score / cap) (Gemma 2). Rows with
        one query go together.
        """
        dim = k_cache.shape[3]
        q = qkv.view(qkv.shape[0], -1, dim)[:, :heads]
        decode: Decode = partial(_decode, window=window, cap=cap) if window or cap else _decode
        if plan.most_queries == 1:
            return decode(q, k_cache, v_cache, plan.block_table, plan.context, scale)
        return mixed_attention(q, k_cache, v_cache, plan, scale, decode, window, cap)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """gate_up [T, 2 * inner] -> silu(gate) * up [T, inner], the gated unit of Shazeer 2020."""
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    def gelu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """gelu(gate) * up (Shazeer 2020), by Hendrycks & Gimpel's approximation with tanh."""
        gate, up = gate_up.chunk(2, -1)
        return F.gelu(gate, approximate="tanh") * up

    def cap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        """cap * tanh(x / cap), of x [S, vocabulary], in float32."""
        return _capped(x.float(), cap).to(x.dtype)

    def lora(self, y: torch.Tensor, x: torch.Tensor, plan: LoraPlan, group: SiteGroup) -> None:
        """y [T, out_total] += (x @ a.T) @ b for each group's tokens.

        Few tokens: one product over all adapters, what is not a token's own masked out. Many: a loop.
        """
        columns = list(pairwise(group.out_offsets))
        first, last = plan.bounds[0], plan.bounds[-1]
        if sum(pair is not None for pair in plan.weights) > 1 and last - first <= _most_masked(x):
            _add_masked(y[first:last], x[first:last], plan, columns)
            return
        for index, pair in enumerate(plan.weights):
            start, stop = plan.bounds[index], plan.bounds[index + 1]
            if pair is not None and start < stop:
                _add(y[start:stop], x[start:stop], pair, columns)


class OneByOne:
    """`Stack` that calls one operation after the other: what a stack in one call must agree with."""

    def __init__(self, model: PackedModel, ops: TorchOps) -> None:
        self._model, self._ops = model, ops

    def run(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor | None,
        layers: tuple[int, int],
        plan: AttentionPlan,
        lora: LoraStep | None,
        scored: torch.Tensor,
    ) -> torch.Tensor:
        """Some layers on hidden [T, hidden], in place; see `Stack`."""
        model, ops = self._model, self._ops
        if tokens is not None:
            if isinstance(model.embed, torch.Tensor):
                torch.index_select(model.embed, 0, tokens, out=hidden)
            else:
                model.embed.rows(tokens, hidden)
            if model.embed_scale != 1.0:
                hidden.mul_(model.embed_scale)
        x = None
        for index in range(*layers):
            x = self._layer(model.layers[index], 4 * index, hidden, x, plan, lora)
        if x is not None:
            hidden += x
        logits = model.head(ops.rms_norm(hidden[scored], model.norm, model.eps))
        return ops.cap(logits, model.logit_cap) if model.logit_cap else logits

    def _layer(
        self,
        layer: Layer,
        site: int,
        hidden: torch.Tensor,
        x: torch.Tensor | None,
        plan: AttentionPlan,
        lora: LoraStep | None,
    ) -> torch.Tensor:
        """What the layer adds to `hidden`, to which `x`, of the layer before, is added first."""
        model, ops = self._model, self._ops
        h = (
            ops.rms_norm(hidden, layer.norm1, model.eps)
            if x is None
            else ops.add_rms_norm(hidden, x, layer.norm1, model.eps)
        )
        qkv = self._linear(layer.qkv, h, lora, site)
        if layer.qk_norm is not None:
            self._normalise_heads(qkv, layer.qk_norm)
        ops.rope_write(qkv, layer.cos, layer.sin, layer.k_cache, layer.v_cache, plan, model.heads)
        how = (model.heads, model.scale, layer.window, model.score_cap)
        h = ops.attention(qkv, layer.k_cache, layer.v_cache, plan, *how)
        x = self._linear(layer.o, h, lora, site + 1)
        if layer.out_norms is not None:
            x = ops.rms_norm(x, layer.out_norms[0], model.eps)
        h = ops.add_rms_norm(hidden, x, layer.norm2, model.eps)
        if isinstance(layer.unit, Experts):
            x = self._mixed(layer.unit, h)
        else:
            h = self._gated(self._linear(layer.unit.gate_up, h, lora, site + 2))
            x = self._linear(layer.unit.down, h, lora, site + 3)
        return x if layer.out_norms is None else ops.rms_norm(x, layer.out_norms[1], model.eps)

    def _gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self._ops.gelu_mul(gate_up) if self._model.gelu else self._ops.silu_mul(gate_up)

    def _mixed(self, experts: Experts, x: torch.Tensor) -> torch.Tensor:
        """Expert by expert, each for its tokens at once."""
        shares, chosen = experts.router(x).float().softmax(-1).topk(experts.top, -1)
        if experts.shares:
            shares /= shares.sum(-1, keepdim=True)
        shares = shares.to(x.dtype).float()
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for index in sorted(set(chosen.flatten().tolist())):
            tokens, place = (chosen == index).nonzero(as_tuple=True)
            unit = experts.units[index]
            y = unit.down(self._gated(unit.gate_up(x[tokens])))
            total[tokens] += shares[tokens, place, None] * y.float()
        return total.to(x.dtype)

    def _linear(self, linear: Linear, x: torch.Tensor, lora: LoraStep | None, site: int) -> torch.Tensor:
        y = linear(x)
        if lora is not None and (plan := lora.sites[site]) is not None:
            self._ops.lora(y, x, plan, self._model.groups[site])
        return y

    def _normalise_heads(self, qkv: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]) -> None:
        model = self._model
        heads = qkv.view(qkv.shape[0], -1, model.head_dim)
        for part, weight in (
            (heads[:, : model.heads], weights[0]),
            (heads[:, model.heads : model.heads + model.kv_heads], weights[1]),
        ):
            flat = part.reshape(-1, model.head_dim)
            part.copy_(self._ops.rms_norm(flat, weight, model.eps).view(part.shape))


def _onednn_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    run = torch.ops.mkldnn._linear_pointwise.default
    nothing: list[Any] = []
    return lambda x: run(x, packed, bias, "none", nothing, "")


def _most_masked(x: torch.Tensor) -> int:
    """Tokens up to which the masked product is faster: it multiplies more, but starts fewer operations."""
    if x.is_cuda:
        return 4096
    return 16 if x.dtype == torch.float32 else 96


def _add(
    y: torch.Tensor, x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], columns: list[tuple[int, int]]
) -> None:
    """y += (x @ a.T) @ b.T for tokens of one adapter, layer by layer."""
    a, b = pair
    z, rank = x @ a.t(), b.shape[1]
    for layer, (low, high) in enumerate(columns):
        y[:, low:high].addmm_(z[:, layer * rank : (layer + 1) * rank], b[low:high].t())


def _add_masked(y: torch.Tensor, x: torch.Tensor, plan: LoraPlan, columns: list[tuple[int, int]]) -> None:
    """The same for all groups at once; the weights are laid side by side once for as long as they run."""
    if not plan.memo:
        pairs = [(index, pair) for index, pair in enumerate(plan.weights) if pair is not None]
        layers = [pair[0].view(len(columns), -1, x.shape[1]) for _, pair in pairs]
        ranks = torch.tensor([pair[1].shape[1] for _, pair in pairs])
        owners = torch.tensor([index for index, _ in pairs]).repeat_interleave(ranks)
        plan.memo["a"] = torch.cat(layers, 1).flatten(0, 1)
        plan.memo["b"] = torch.cat([pair[1] for _, pair in pairs], 1)
        plan.memo["owners"] = owners.to(x.device, torch.int32)
    rank = plan.memo["b"].shape[1]
    tokens = torch.arange(plan.bounds[0], plan.bounds[-1], device=x.device)
    group = torch.bucketize(tokens, plan.starts[1:], right=True, out_int32=True)
    z = x @ plan.memo["a"].t()
    z.view(-1, len(columns), rank).masked_fill_((group[:, None] != plan.memo["owners"])[:, None], 0)
    for layer, (low, high) in enumerate(columns):
        y[:, low:high].addmm_(z[:, layer * rank : (layer + 1) * rank], plan.memo["b"][low:high].t())


def _decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor,
    context: torch.Tensor,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> torch.Tensor:
    """One query for each row: q [R, heads, dim] -> [R, heads * dim]. No value leaves the device."""
    rows, heads, dim = q.shape
    kv_heads, length = k_cache.shape[1], table.shape[1] * BLOCK
    at = torch.arange(length, device=q.device)
    unseen = at >= context[:, None]
    if window:
        unseen |= at < context[:, None] - window
    offsets = torch.arange(kv_heads * BLOCK, device=q.device, dtype=torch.int32).view(kv_heads, 1, BLOCK)
    places = (table[:, None, :, None] * (kv_heads * BLOCK) + offsets).view(rows, kv_heads, length)
    # Weight 0 would not hide a NaN left in a place that is not in use: read the first one instead.
    index = torch.where(unseen[:, None], places[:, :, :1], places).view(-1)
    k = k_cache.view(-1, dim).index_select(0, index).view(-1, length, dim)
    v = v_cache.view(-1, dim).index_select(0, index).view(-1, length, dim)
    folded = q.reshape(rows * kv_heads, heads // kv_heads, dim)
    bias = q.new_zeros(rows, 1, 1, length).masked_fill_(unseen[:, None, None], -torch.inf)
    bias = bias.expand(-1, kv_heads, heads // kv_heads, -1).reshape(-1, heads // kv_heads, length)
    if cap:
        scores = _capped(folded.float() @ k.float().mT * scale, cap)
        return ((scores + bias).softmax(-1).to(q.dtype) @ v).view(rows, heads * dim)
    weights = torch.baddbmm(bias, folded, k.mT, alpha=scale).softmax(-1)
    return (weights @ v).view(rows, heads * dim)


def _capped(scores: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(scores / cap) * cap


def mixed_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    decode: Decode,
    window: int = 0,
    cap: float = 0.0,
) -> torch.Tensor:
    """Rows with several queries one by one, those with one query in a single call of `decode`."""
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    single = _single_rows(plan, q.device)
    if single is not None:
        tokens, table, context = single
        out[tokens] = decode(q[tokens], k_cache, v_cache, table, context, scale)
    for row, (start, stop) in enumerate(pairwise(plan.bounds)):
        if stop - start > 1:
            seen = plan.contexts[row]
            used = plan.block_table[row, : -(-seen // BLOCK)]
            out[start:stop] = _prefill(q[start:stop], k_cache[used], v_cache[used], seen, scale, window, cap)
    return out


def _single_rows(
    plan: AttentionPlan, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Token, blocks and context of the rows with one query; brought to the device once a step."""
    rows = [row for row, (start, stop) in enumerate(pairwise(plan.bounds)) if stop - start == 1]
    if not rows:
        return None
    memo = plan.memo
    if "tokens" not in memo:
        pick = torch.tensor(rows, device=device)
        blocks = -(-max(plan.contexts[row] for row in rows) // BLOCK)
        memo["tokens"] = plan.cu_q[pick].long()
        memo["table"] = plan.block_table[pick, :blocks]
        memo["context"] = plan.context[pick]
    return memo["tokens"], memo["table"], memo["context"]


def _prefill(
    q: torch.Tensor,
    k_blocks: torch.Tensor,
    v_blocks: torch.Tensor,
    context: int,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> torch.Tensor:
    """Queries of one row, the last of its context: q [n, heads, dim] -> [n, heads * dim]."""
    n = q.shape[0]
    k = k_blocks.transpose(0, 1).flatten(1, 2)[None, :, :context]
    v = v_blocks.transpose(0, 1).flatten(1, 2)[None, :, :context]
    mask = None
    if n != context or window or cap:
        mask = torch.ones(n, context, dtype=torch.bool, device=q.device).tril_(context - n)
        if window:
            mask.triu_(context - n - window + 1)
    if cap and mask is not None:
        grouped = q.view(n, k.shape[1], -1, q.shape[2]).permute(1, 2, 0, 3).float()
        scores = _capped(grouped @ k[0, :, None].float().mT * scale, cap).masked_fill(~mask, -torch.inf)
        summed = scores.softmax(-1).to(q.dtype) @ v[0, :, None]
        return summed.permute(2, 0, 1, 3).reshape(n, -1)
    result = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return result[0].transpose(0, 1).reshape(n, -1)
