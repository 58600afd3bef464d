"""The fast path: decoder layers of known shape, rebuilt from packed weights.

Llama, Mistral, Qwen2 and Qwen3 share one layer: norm, q/k/v with optional bias and q/k norm, rotary
positions, grouped attention, o, norm, gated SiLU. The whole stack is `forward` below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from router.engine.model.backbone import Taps
from router.engine.ops import BLOCK, AttentionPlan, Linear, LoraPlan, Ops, SiteGroup

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GROUPS = (_QKV, ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}


def why_not_packed(model: Any, context: int) -> str:
    """Empty if the fast path can run this model, else the reason for the generic path."""
    config = model.config
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not layers or {type(layer).__name__ for layer in layers} - _LAYERS:
        return f"{type(model).__name__} has layers of another shape"
    if getattr(config, "hidden_act", "") not in ("silu", "swish"):
        return f"activation {config.hidden_act!r}"
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if window and window < context and (sliding or not hasattr(config, "layer_types")):
        return f"sliding window of {window} tokens"
    rope = getattr(model.model.rotary_emb, "rope_type", "default")
    if rope in ("dynamic", "longrope"):
        return f"rotary positions of type {rope!r} depend on the length"
    return ""


@dataclass(slots=True)
class _Layer:
    norm1: torch.Tensor
    norm2: torch.Tensor
    eps: float
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    qk_norm: tuple[torch.Tensor, torch.Tensor] | None
    k_cache: torch.Tensor
    v_cache: torch.Tensor


class PackedBackbone:
    """A Llama-shaped model. Takes the model apart: its layers are empty afterwards."""

    kind = "packed"

    def __init__(self, model: Any, ops: Ops, blocks: int, context: int) -> None:
        config, inner = model.config, model.model
        attention = inner.layers[0].self_attn
        self._ops = ops
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._head_dim = attention.head_dim
        self._scale = float(attention.scaling)
        self.layers = len(inner.layers)
        self._embed = inner.embed_tokens.weight
        self._final = (inner.norm.weight, float(inner.norm.variance_epsilon))
        self._cos, self._sin = _rotary_table(inner.rotary_emb, context, self._embed)
        self._cache_shape = (blocks, self._kv_heads, BLOCK, self._head_dim)
        self.groups: list[SiteGroup] = []
        self._layers = []
        for index in range(self.layers):
            layer = inner.layers[index]
            self.groups += [_site_group(f"model.layers.{index}", layer, names) for names in _GROUPS]
            self._layers.append(self._pack_layer(layer))
            inner.layers[index] = torch.nn.Identity()
        self._head = ops.pack_linear(model.lm_head.weight, model.lm_head.bias)

    def _pack_layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
        return _Layer(
            norm1=layer.input_layernorm.weight,
            norm2=layer.post_attention_layernorm.weight,
            eps=float(layer.input_layernorm.variance_epsilon),
            qkv=self._ops.pack_linear(*_joined([attention.q_proj, attention.k_proj, attention.v_proj])),
            o=self._ops.pack_linear(*_joined([attention.o_proj])),
            gate_up=self._ops.pack_linear(*_joined([mlp.gate_proj, mlp.up_proj])),
            down=self._ops.pack_linear(*_joined([mlp.down_proj])),
            qk_norm=norms,
            k_cache=self._embed.new_empty(self._cache_shape),
            v_cache=self._embed.new_empty(self._cache_shape),
        )

    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return sum(2 * layer.k_cache.numel() * layer.k_cache.element_size() for layer in self._layers)

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: Sequence[LoraPlan | None] | None,
        last: torch.Tensor,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """One step: tokens int64 [T], rows to score `last` [S] -> logits [S, vocabulary]."""
        ops, heads, scale = self._ops, self._heads, self._scale
        residual = self._embed[tokens]
        x = None
        for index, layer in enumerate(self._layers):
            at = index * len(_GROUPS)
            h = (
                ops.rms_norm(residual, layer.norm1, layer.eps)
                if x is None
                else ops.add_rms_norm(residual, x, layer.norm1, layer.eps)
            )
            if taps is not None and (tap := taps.at.get(index)):
                tap(residual)
                if taps.last == index:
                    return self._head(residual[last])  # of no row
            qkv = self._linear(layer.qkv, h, lora, at)
            if layer.qk_norm is not None:
                self._normalise_heads(qkv, layer.qk_norm, layer.eps)
            ops.rope_write(qkv, self._cos, self._sin, layer.k_cache, layer.v_cache, plan, heads)
            h = ops.attention(qkv, layer.k_cache, layer.v_cache, plan, heads, scale)
            x = self._linear(layer.o, h, lora, at + 1)
            h = ops.add_rms_norm(residual, x, layer.norm2, layer.eps)
            h = ops.silu_mul(self._linear(layer.gate_up, h, lora, at + 2))
            x = self._linear(layer.down, h, lora, at + 3)
        if x is not None:
            residual += x
        if taps is not None and self.layers in taps.at:
            taps.at[self.layers](ops.rms_norm(residual, *self._final))
        return self._head(ops.rms_norm(residual[last], *self._final))

    def _linear(
        self, linear: Linear, x: torch.Tensor, lora: Sequence[LoraPlan | None] | None, group: int
    ) -> torch.Tensor:
        y = linear(x)
        if lora is not None and (plan := lora[group]) is not None:
            self._ops.lora(y, x, plan, self.groups[group])
        return y

    def _normalise_heads(
        self, qkv: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor], eps: float
    ) -> None:
        heads = qkv.view(qkv.shape[0], -1, self._head_dim)
        for part, weight in (
            (heads[:, : self._heads], weights[0]),
            (heads[:, self._heads : self._heads + self._kv_heads], weights[1]),
        ):
            flat = part.reshape(-1, self._head_dim)
            part.copy_(self._ops.rms_norm(flat, weight, eps).view(part.shape))


def _joined(layers: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and biases of layers that read the same input, one below the other."""
    weight = torch.cat([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = [
        layer.bias if layer.bias is not None else weight.new_zeros(layer.out_features) for layer in layers
    ]
    return weight, torch.cat(biases)


def _site_group(prefix: str, layer: Any, names: tuple[str, ...]) -> SiteGroup:
    linears = [layer.get_submodule(name) for name in names]
    offsets = [0]
    for linear in linears:
        offsets.append(offsets[-1] + linear.out_features)
    return SiteGroup(tuple(f"{prefix}.{n}" for n in names), linears[0].in_features, tuple(offsets))


def _rotary_table(rotary: Any, context: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [positions, head_dim] float32, with the rounding that the model itself applies."""
    positions = torch.arange(context, device=like.device)[None]
    cos, sin = rotary(like[:1, None].float(), positions)
    return cos[0].to(like.dtype).float().contiguous(), sin[0].to(like.dtype).float().contiguous()
