"""The fast path: decoder layers of known shape, rebuilt from packed weights.

Llama, Mistral, Qwen2 and Qwen3 share one layer: norm, q/k/v with optional bias and q/k norm, rotary
positions, grouped attention, o, norm, gated SiLU. Native operations run the whole stack as one call, others
layer by layer (`stack`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from router.engine.int8 import quantise
from router.engine.model.backbone import Taps
from router.engine.ops import BLOCK, AttentionPlan, Layer, Linear, LoraStep, Model, Ops, SiteGroup, Stack

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


class PackedBackbone:
    """A Llama-shaped model. Takes the model apart: its layers are empty afterwards."""

    kind = "packed"

    def __init__(self, model: Any, ops: Ops, blocks: int, context: int, *, int8: bool = False) -> None:
        """`int8`: keep the weights of linear layers in 8 bits."""
        config, inner = model.config, model.model
        attention = inner.layers[0].self_attn
        embed = inner.embed_tokens.weight
        cos, sin = _rotary_table(inner.rotary_emb, context, embed.device)
        self._ops, self._int8, self._embed = ops, int8, embed
        self.saved = 0
        self._cache_shape = (blocks, config.num_key_value_heads, BLOCK, attention.head_dim)
        self._model = Model(
            embed=embed,
            cos=cos,
            sin=sin,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            eps=float(inner.norm.variance_epsilon),
            scale=float(attention.scaling),
            norm=inner.norm.weight,
            head=self._pack([model.lm_head]),
            layers=[],
            groups=[],
        )
        for index in range(len(inner.layers)):
            layer = inner.layers[index]
            self._model.groups += [_site_group(f"model.layers.{index}", layer, names) for names in _GROUPS]
            self._model.layers.append(self._pack_layer(layer, embed))
            inner.layers[index] = torch.nn.Identity()
        self.groups, self.layers = self._model.groups, len(inner.layers)
        self._stack = ops.stack(self._model)
        self._hidden = embed.new_empty(0, embed.shape[1])  # kept: a step like the last one makes no tensor

    def _pack_layer(self, layer: Any, like: torch.Tensor) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
        return Layer(
            norm1=layer.input_layernorm.weight,
            norm2=layer.post_attention_layernorm.weight,
            qk_norm=norms,
            qkv=self._pack([attention.q_proj, attention.k_proj, attention.v_proj]),
            o=self._pack([attention.o_proj]),
            gate_up=self._pack([mlp.gate_proj, mlp.up_proj]),
            down=self._pack([mlp.down_proj]),
            k_cache=like.new_empty(self._cache_shape),
            v_cache=like.new_empty(self._cache_shape),
        )

    @property
    def stack(self) -> Stack:
        """What runs the layers."""
        return self._stack

    def resize(self, blocks: int) -> None:
        """A KV cache of so many blocks in place of the one that is there; what was in it is gone."""
        self._cache_shape = (blocks, *self._cache_shape[1:])
        layers = self._model.layers
        for layer in layers:
            del layer.k_cache, layer.v_cache  # before the next is made: both may not fit
        for layer in layers:
            layer.k_cache = self._model.embed.new_empty(self._cache_shape)
            layer.v_cache = self._model.embed.new_empty(self._cache_shape)
        self._stack = self._ops.stack(self._model)

    def _pack(self, layers: Sequence[Any]) -> Linear:
        weight, bias = _joined(layers)
        if not self._int8:
            return self._ops.pack_linear(weight, bias)
        small = quantise(weight)
        if weight is not self._embed:  # which stays as it is
            self.saved += weight.nbytes - small.nbytes
        return self._ops.pack_int8(small, bias, weight.dtype)

    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return sum(2 * layer.k_cache.numel() * layer.k_cache.element_size() for layer in self._model.layers)

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: LoraStep | None,
        last: torch.Tensor,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """One step: tokens int64 [T], rows to score `last` [S] -> logits [S, vocabulary]."""
        if len(self._hidden) != len(tokens):
            self._hidden = self._model.embed.new_empty(len(tokens), self._model.embed.shape[1])
        hidden = self._hidden
        if taps is None:
            return self._stack.run(hidden, tokens, (0, self.layers), plan, lora, last)
        begin = 0
        embed: torch.Tensor | None = tokens
        for layer in sorted(taps.at):
            nothing = self._stack.run(hidden, embed, (begin, layer), plan, lora, last[:0])
            begin, embed = layer, None
            whole = layer == self.layers
            taps.at[layer](self._ops.rms_norm(hidden, self._model.norm, self._model.eps) if whole else hidden)
            if layer == taps.last:
                return nothing
        return self._stack.run(hidden, embed, (begin, self.layers), plan, lora, last)


def _joined(layers: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and biases of layers that read the same input, one below the other."""
    weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
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


def _rotary_table(rotary: Any, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [positions, head_dim] float32, from frequencies in float32 and not rounded.

    transformers rounds both to the model's dtype. Here they are multiplied in float32, and over 8,000 tokens
    the unrounded table is nearer to the model in float32.
    """
    positions = torch.arange(context, device=device)[None]
    cos, sin = rotary(torch.zeros(1, 1, 1, device=device), positions)
    return cos[0].float().contiguous(), sin[0].float().contiguous()
