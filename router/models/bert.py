"""BERT as the sentence encoders have it, in plain torch: transformers' class takes a second to import."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from router.errors import ConfigError

EMBEDDINGS = "embeddings"


class Bert:
    """The layers of a folder that transformers' `BertModel` wrote; the pooler is left out. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """In float32. Raises ConfigError where it is another kind of model."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (config.get("model_type"), config.get("hidden_act")) != ("bert", "gelu"):
            raise ConfigError(f"{folder.name} is no BERT with exact GELUs")
        self._heads, self._layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self._epsilon = float(config["layer_norm_eps"])
        # Copied: what is loaded lies in the file, which may change.
        self._weights = {
            name: tensor.to(torch.float32, copy=True)
            for name, tensor in load_file(folder / "model.safetensors").items()
            if tensor.is_floating_point() and not name.startswith("pooler.")
        }

    def add(self, module: str, change: torch.Tensor) -> None:
        """Add a change [outputs, inputs] to the weight of a linear layer. Raises KeyError."""
        self._weights[f"{module}.weight"] += change

    def to(self, dtype: torch.dtype) -> None:
        """Round all weights."""
        self._weights = {name: tensor.to(dtype) for name, tensor in self._weights.items()}

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states [texts, tokens, hidden] of token ids [texts, tokens]; `mask` is 0 for padding."""
        read = self._weights
        words = functional.embedding(ids, read[f"{EMBEDDINGS}.word_embeddings.weight"])
        kinds = read[f"{EMBEDDINGS}.token_type_embeddings.weight"][0]
        places = read[f"{EMBEDDINGS}.position_embeddings.weight"][: ids.shape[1]]
        hidden = self._norm(words + kinds + places, EMBEDDINGS)
        seen = None if bool(mask.all()) else mask.bool()[:, None, None, :]
        for index in range(self._layers):
            hidden = self._layer(hidden, seen, f"encoder.layer.{index}")
        return hidden

    def _layer(self, hidden: torch.Tensor, seen: torch.Tensor | None, layer: str) -> torch.Tensor:
        query, key, value = (
            self._linear(hidden, f"{layer}.attention.self.{part}")
            .view(*hidden.shape[:-1], self._heads, -1)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, seen)
        mixed = self._linear(mixed.transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
        hidden = self._norm(mixed + hidden, f"{layer}.attention.output")
        inner = functional.gelu(self._linear(hidden, f"{layer}.intermediate.dense"))
        return self._norm(self._linear(inner, f"{layer}.output.dense") + hidden, f"{layer}.output")

    def _linear(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(values, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, values: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (self._weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return functional.layer_norm(values, weight.shape, weight, bias, self._epsilon)
