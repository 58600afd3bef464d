"""The path for any architecture: the transformers model with our attention, cache and linear layers."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from router.engine.ops import BLOCK, AttentionPlan, Linear, LoraStep, SiteGroup
from router.engine.runner import Taps
from router.engine.torch_ops import TorchOps
from router.engine.weights import packed
from router.errors import ConfigError
from router.models.importing import import_transformers

HEADS = 16  # native attention takes heads of a multiple of it
_numbers = count()  # one attention function for each engine of the process


class GenericBackbone:
    """Any transformers decoder that calls the attention interface."""

    kind = "generic"

    def __init__(self, model: Any, ops: TorchOps, blocks: int, quantize: str = "none") -> None:
        """`quantize`: how linear layers but the head are kept (none, int8, int4). Takes the model apart."""
        import_transformers()
        from transformers import AttentionInterface

        self._model = model
        self.layers = int(model.config.num_hidden_layers)
        self._step = _Step(ops)
        self._quantize, self.saved = quantize, 0
        self._blocks = blocks
        # The model has rotated what it has to: of all positions no number is.
        self._turned = torch.empty(2**31 - 1, 0, dtype=torch.float32, device=model.device)
        self._caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # k and v of each layer
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
        return sum(cache.nbytes for pair in self._caches.values() for cache in pair)

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
            if not _is_linear(module):
                continue
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()
            quantize = "none" if module is head else self._quantize
            linear, saved = packed(weight.detach(), module.bias, self._step.ops, quantize)
            self.saved += saved
            replacement: nn.Module = PackedLinear(linear)
            if module is not head:
                group = SiteGroup((name,), weight.shape[1], (0, weight.shape[0]))
                replacement = MultiLoraLinear(replacement, group, len(groups), self._step)
                groups.append(group)
            parent, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, replacement)
        return groups

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
        heads, tokens, size = query.shape[1:]
        dim = -(-max(size, value.shape[-1]) // HEADS) * HEADS
        pair = self._caches.get(module.layer_idx)
        if pair is None:
            shape = (self._blocks, key.shape[1], BLOCK, dim)
            pair = self._caches[module.layer_idx] = (key.new_empty(shape), value.new_empty(shape))
        scale = size**-0.5 if scaling is None else scaling
        window = sliding_window if sliding_window and sliding_window < max(plan.contexts) else 0
        parts = [_wide(part[0].transpose(0, 1), dim) for part in (query, key, value)]
        qkv = torch.cat(parts, 1).view(tokens, -1)
        ops, turned = self._step.ops, self._turned
        ops.rope_write(qkv, turned, turned, *pair, plan, heads)
        out = ops.attention(qkv, *pair, plan, heads, scale, window, softcap or 0.0)
        return out.view(1, tokens, heads, dim)[..., : value.shape[-1]], None


class _Step:
    """What the layers of one running step need; set by `forward`, read by every layer."""

    def __init__(self, ops: TorchOps) -> None:
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


class PackedLinear(nn.Module):
    """A linear layer as the operations have it."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        y = self._linear(x.reshape(-1, x.shape[-1]).contiguous())
        return y.view(*x.shape[:-1], y.shape[-1])


def _unsupported(model: Any) -> str:
    return f"{type(model).__name__} does not use transformers' attention interface, which this engine needs"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _wide(part: torch.Tensor, dim: int) -> torch.Tensor:
    """[T, heads, n] with zeros up to [T, heads, dim]: they change no score."""
    return part if part.shape[-1] == dim else pad(part, (0, dim - part.shape[-1]))
