"""The path for any architecture: the transformers model with our attention, cache and linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from router.engine.ops import BLOCK, AttentionPlan, Linear, LoraStep, Ops, SiteGroup
from router.engine.runner import Taps
from router.engine.weights import packed
from router.errors import ConfigError

_numbers = count()  # one attention function for each engine of the process


class GenericBackbone:
    """Any transformers decoder that calls the attention interface."""

    kind = "generic"

    def __init__(self, model: Any, ops: Ops, blocks: int, quantize: str = "none") -> None:
        """`quantize`: what the weights of linear layers but the head are kept in (none, int8, int4)."""
        from transformers import AttentionInterface

        self._model = model
        self.layers = int(model.config.num_hidden_layers)
        self._step = _Step(ops)
        self._quantize, self.saved = quantize, 0
        self._blocks = blocks
        self._caches: dict[int, KeyValues] = {}
        self.groups = self._replace_linears()
        name = f"lora_router_{next(_numbers)}"
        AttentionInterface.register(name, self._attention)
        try:
            model.set_attn_implementation(name)
        except ValueError as error:
            raise ConfigError(_unsupported(model)) from error
        self._prove_attention()

    def resize(self, blocks: int) -> None:
        """A KV cache of so many blocks in place of the one that is there; what was in it is gone."""
        self._blocks = blocks
        self._caches.clear()
        self._prove_attention()  # each layer makes its own when it runs

    def cache_bytes(self) -> int:
        """Bytes of the KV cache allocated so far."""
        return sum(cache.nbytes for cache in self._caches.values())

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: LoraStep | None,
        last: torch.Tensor,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """One step: tokens int64 [T], rows to score `last` [S] -> logits [S, vocabulary]."""
        step = self._step
        step.plan, step.lora = plan, lora
        try:
            output = self._model(
                input_ids=tokens[None],
                position_ids=plan.positions[None].long(),
                logits_to_keep=last,
                use_cache=False,
                **({} if taps is None else {"output_hidden_states": True}),
            )
        finally:
            step.plan = step.lora = None
        if taps is not None:
            for layer, tap in taps.at.items():
                tap(output.hidden_states[layer][0])
        logits: torch.Tensor = output.logits[0]
        return logits

    def _replace_linears(self) -> list[SiteGroup]:
        groups: list[SiteGroup] = []
        head = self._model.get_output_embeddings()
        for name, module in list(self._model.named_modules()):
            if module is head or not _is_linear(module):
                continue
            inputs, outputs = _features(module)
            group = SiteGroup((name,), inputs, (0, outputs))
            parent, _, leaf = name.rpartition(".")
            replacement = MultiLoraLinear(self._kept(module), group, len(groups), self._step)
            setattr(self._model.get_submodule(parent), leaf, replacement)
            groups.append(group)
        return groups

    def _kept(self, layer: Any) -> nn.Module:
        """The layer, or the same in few bits."""
        if self._quantize == "none":
            kept: nn.Module = layer
            return kept
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
        linear, saved = packed(weight, layer.bias, self._step.ops, self._quantize)
        self.saved += saved
        return SmallLinear(linear)

    def _prove_attention(self) -> None:
        """One token through the model: some models ignore the attention function that was set."""

        def one(value: int) -> torch.Tensor:
            return torch.tensor([value], dtype=torch.int32, device=self._model.device)

        bounds = torch.tensor([0, 1], dtype=torch.int32, device=self._model.device)
        plan = AttentionPlan(bounds, one(1), one(0)[None], one(0), one(0), 1, [0, 1], [1])
        with torch.inference_mode():
            self.forward(one(0).long(), plan, None, one(0).long())
        if not self._caches:
            raise ConfigError(_unsupported(self._model))

    def _attention(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Called by every attention layer: query [1, heads, T, dim], key and value [1, kv_heads, T, dim]."""
        plan = self._step.plan
        if plan is None:
            raise ConfigError("the model was called outside a step")
        if s_aux is not None:
            raise ConfigError("attention sinks are not supported")
        cache = self._caches.get(module.layer_idx)
        if cache is None:
            cache = self._caches[module.layer_idx] = KeyValues.like(key, value, self._blocks)
        cache.write(key[0], value[0], plan.slots)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = paged_attention(query[0], cache, plan, scale, sliding_window, softcap)
        return out[None], None


class _Step:
    """What the layers of one running step need; set by `forward`, read by every layer."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.plan: AttentionPlan | None = None
        self.lora: LoraStep | None = None


class MultiLoraLinear(nn.Module):
    """A linear layer whose rows may each have an adapter."""

    def __init__(self, base: nn.Module, group: SiteGroup, index: int, step: _Step) -> None:
        super().__init__()
        self.base, self._group, self._index, self._step = base, group, index, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, T, in] -> [1, T, out]."""
        y: torch.Tensor = self.base(x)
        lora = self._step.lora
        if lora is not None and (plan := lora.sites[self._index]) is not None:
            flat = y.reshape(-1, y.shape[-1])
            self._step.ops.lora(flat, x.reshape(-1, x.shape[-1]).contiguous(), plan, self._group)
            y = flat.view(y.shape)
        return y


class SmallLinear(nn.Module):
    """A linear layer with its weight in few bits."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        y = self._linear(x.reshape(-1, x.shape[-1]).contiguous())
        return y.view(*x.shape[:-1], -1)


def _unsupported(model: Any) -> str:
    return f"{type(model).__name__} does not use transformers' attention interface, which this engine needs"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _features(module: Any) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return int(module.nx), int(module.nf)


# -- Attention over the paged cache in plain torch, with every feature the interface can ask for.


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


def paged_attention(
    query: torch.Tensor,
    cache: KeyValues,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """query [heads, T, dim] -> [T, heads, value_dim]; each row sees its own earlier tokens only."""
    out = query.new_empty(query.shape[1], query.shape[0], cache.v.shape[-1])
    for row, context in enumerate(plan.contexts):
        start, end = plan.bounds[row], plan.bounds[row + 1]
        places = _cache_places(plan.block_table[row], context)
        k, v = cache.k[places].transpose(0, 1), cache.v[places].transpose(0, 1)
        mask = _causal_mask(end - start, context, window, query.device)
        rows = query[:, start:end]
        attended = (
            _softcapped(rows, k, v, mask, scale, softcap) if softcap else _sdpa(rows, k, v, mask, scale)
        )
        out[start:end] = attended.transpose(0, 1)
    return out


def _cache_places(blocks: torch.Tensor, context: int) -> torch.Tensor:
    used = blocks[: -(-context // BLOCK)].long()
    offsets = torch.arange(BLOCK, device=blocks.device)
    return (used[:, None] * BLOCK + offsets).flatten()[:context]


def _causal_mask(queries: int, context: int, window: int | None, device: torch.device) -> torch.Tensor | None:
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
