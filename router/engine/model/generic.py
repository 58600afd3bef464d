"""The path for any architecture: the transformers model with our attention, cache and linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import nn

from router.engine.model.attention import KeyValues, attend
from router.engine.model.backbone import Taps
from router.engine.ops import AttentionPlan, LoraPlan, Ops, SiteGroup
from router.errors import ConfigError

_NAMES = count()


class _Step:
    """What the layers of one running step need; set by `forward`, read by every layer."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.plan: AttentionPlan | None = None
        self.lora: Sequence[LoraPlan | None] | None = None


class MultiLoraLinear(nn.Module):
    """A linear layer whose rows may each have an adapter."""

    def __init__(self, base: nn.Module, group: SiteGroup, index: int, step: _Step) -> None:
        super().__init__()
        self.base, self._group, self._index, self._step = base, group, index, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, T, in] -> [1, T, out]."""
        y: torch.Tensor = self.base(x)
        plans = self._step.lora
        if plans is not None and (plan := plans[self._index]) is not None:
            flat = y.reshape(-1, y.shape[-1])
            self._step.ops.lora(flat, x.reshape(-1, x.shape[-1]).contiguous(), plan, self._group)
            y = flat.view(y.shape)
        return y


class GenericBackbone:
    """Any transformers decoder that calls the attention interface."""

    kind = "generic"

    def __init__(self, model: Any, ops: Ops, blocks: int) -> None:
        from transformers import AttentionInterface

        self._model = model
        self.layers = int(model.config.num_hidden_layers)
        self._step = _Step(ops)
        self._blocks = blocks
        self._caches: dict[int, KeyValues] = {}
        self.groups = self._replace_linears()
        name = f"lora_router_{next(_NAMES)}"  # one attention function for each engine of the process
        AttentionInterface.register(name, self._attention)
        try:
            model.set_attn_implementation(name)
        except ValueError as error:
            raise ConfigError(_unsupported(model)) from error
        self._prove_attention()

    def _prove_attention(self) -> None:
        """One token through the model: some models ignore the attention function that was set."""

        def one(value: int) -> torch.Tensor:
            return torch.tensor([value], dtype=torch.int32, device=self._model.device)

        bounds = torch.tensor([0, 1], dtype=torch.int32, device=self._model.device)
        plan = AttentionPlan(bounds, one(1), one(0)[None], one(0), one(0), 1)
        with torch.inference_mode():
            self.forward(one(0).long(), plan, None, one(0).long())
        if not self._caches:
            raise ConfigError(_unsupported(self._model))

    def cache_bytes(self) -> int:
        """Bytes of the KV cache allocated so far."""
        return sum(cache.nbytes for cache in self._caches.values())

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: Sequence[LoraPlan | None] | None,
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
        out = attend(query[0], cache, plan, scale, sliding_window, softcap)
        return out[None], None

    def _replace_linears(self) -> list[SiteGroup]:
        groups: list[SiteGroup] = []
        head = self._model.get_output_embeddings()
        for name, module in list(self._model.named_modules()):
            if module is head or not _is_linear(module):
                continue
            inputs, outputs = _features(module)
            group = SiteGroup((name,), inputs, (0, outputs))
            parent, _, leaf = name.rpartition(".")
            replacement = MultiLoraLinear(module, group, len(groups), self._step)
            setattr(self._model.get_submodule(parent), leaf, replacement)
            groups.append(group)
        return groups


def _unsupported(model: Any) -> str:
    return f"{type(model).__name__} does not use transformers' attention interface, which this engine needs"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _features(module: Any) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return int(module.nx), int(module.nf)
