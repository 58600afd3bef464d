"""A decoder of Llama's shape as its config says it: its weights' names and shapes, and its positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import torch

from router.engine.checkpoint import CLASSES, HEAD

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
O, DOWN = "self_attn.o_proj", "mlp.down_proj"  # noqa: E741
SITES = (QKV, (O,), GATE_UP, (DOWN,))  # linear layers that read the same input, in the order of a layer
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
NORMS = ("input_layernorm", "post_attention_layernorm")
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"

_ENTRIES: dict[str, type | UnionType] = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "vocab_size": int,
    "max_position_embeddings": int,
    "rms_norm_eps": float,
    "tie_word_embeddings": bool,
    "hidden_act": str,
    "eos_token_id": int | list | None,
}  # that a config.json must have to be understood without transformers
_UNUSUAL = {"partial_rotary_factor", "original_max_position_embeddings", "auto_map"}


class PlainConfig:
    """What config.json says, as attributes: transformers' classes for it take half a second to import."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        vars(self).update(entries)

    def standardize_rope_params(self) -> None:
        """Nothing: `plain_config` did it. transformers calls it before it computes frequencies."""


def plain_config(folder: Path) -> PlainConfig | None:
    """The config of a base of `CLASSES`; None where only transformers knows what the file means.

    So it is where an entry is missing or unusual: the class of each type has its own values for those.
    """
    try:
        said: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or said.get("model_type") not in CLASSES or _UNUSUAL & said.keys():
        return None
    if not all(name in said and isinstance(said[name], kind) for name, kind in _ENTRIES.items()):
        return None
    rope = {"rope_theta": said.get("rope_theta")} | (
        said.get("rope_parameters") or said.get("rope_scaling") or {}
    )
    rope.setdefault("rope_type", rope.get("type", "default"))
    scaled = rope["rope_type"] != "default" and "original_max_position_embeddings" not in rope
    dtype = getattr(torch, str(said.get("dtype") or said.get("torch_dtype")), None)
    kinds = set(said.get("layer_types") or ())
    if (
        not isinstance(rope["rope_theta"], float | int)
        or scaled
        or _window(said)
        or kinds - {"full_attention"}
    ):
        return None
    more = {"rope_parameters": rope, "dtype": dtype, "sliding_window": None, "_name_or_path": str(folder)}
    return PlainConfig(said | more) if isinstance(dtype, torch.dtype) else None


def _window(said: Mapping[str, Any]) -> bool:
    """Whether attention may have a sliding window."""
    if set(said.get("layer_types") or ()) - {"full_attention"}:
        return True
    if said["model_type"] == "llama":
        return False
    if said["model_type"] == "mistral":
        return said.get("sliding_window", "by default") is not None
    return said.get("use_sliding_window") is not False


def head_size(config: Any) -> int:
    """Numbers in one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What a config says of a decoder of one of `CLASSES`."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    eps: float  # of every norm
    tied: bool  # the head is the table of embeddings
    biases: frozenset[str]  # linear layers of a layer that have one
    qk_norm: bool  # each head of q and k is normed

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Of the config as transformers has it."""
        kind = config.model_type
        attention, gated = getattr(config, "attention_bias", False), getattr(config, "mlp_bias", False)
        if kind == "qwen2":
            biases = {*QKV}
        else:
            biases = {*((*QKV, O) if attention else ()), *((*GATE_UP, DOWN) if gated else ())}
        return cls(
            layers=int(config.num_hidden_layers),
            hidden=int(config.hidden_size),
            inner=int(config.intermediate_size),
            heads=int(config.num_attention_heads),
            kv_heads=int(config.num_key_value_heads),
            head_dim=head_size(config),
            vocabulary=int(config.vocab_size),
            eps=float(config.rms_norm_eps),
            tied=bool(config.tie_word_embeddings),
            biases=frozenset(biases),
            qk_norm=kind == "qwen3",
        )

    @property
    def scale(self) -> float:
        """Of attention's scores."""
        return float(self.head_dim**-0.5)

    def linear(self, site: str) -> tuple[int, int]:
        """Outputs and inputs of a linear layer of a layer."""
        heads = self.heads * self.head_dim
        if site in QKV:
            return (heads if site == QKV[0] else self.kv_heads * self.head_dim), self.hidden
        if site == O:
            return self.hidden, heads
        return (self.hidden, self.inner) if site == DOWN else (self.inner, self.hidden)

    def weights(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every weight by its name, in the order of a step."""
        found: dict[str, tuple[int, ...]] = {EMBED: (self.vocabulary, self.hidden)}
        for index in range(self.layers):
            found |= {f"{layer_name(index)}.{name}": shape for name, shape in self._of_layer().items()}
        found[NORM] = (self.hidden,)
        if not self.tied:
            found[HEAD] = (self.vocabulary, self.hidden)
        return found

    def _of_layer(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {f"{name}.weight": (self.hidden,) for name in NORMS}
        if self.qk_norm:
            found |= {f"{name}.weight": (self.head_dim,) for name in QK_NORMS}
        for name in (name for names in SITES for name in names):
            found[f"{name}.weight"] = self.linear(name)
            if name in self.biases:
                found[f"{name}.bias"] = self.linear(name)[:1]
        return found


def layer_name(index: int) -> str:
    """The prefix of a layer's names."""
    return f"model.layers.{index}"


def rotary_table(config: Any, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [positions, head_dim] float32 of the first `context` positions.

    From frequencies in float32 and not rounded. transformers rounds both to the model's dtype. Here they are
    multiplied in float32, and over 8,000 tokens the unrounded table is nearer to the model in float32.
    """
    kind, scale = config.rope_parameters["rope_type"], 1.0
    if kind == "default":  # Su et al. 2021
        size = head_size(config)
        powers = torch.arange(0, size, 2, dtype=torch.float32) / size
        frequencies = 1.0 / (config.rope_parameters["rope_theta"] ** powers)
        if factors := config.rope_parameters.get("frequency_factors"):  # as a GGUF file has them
            frequencies /= torch.tensor(factors)
    else:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    positions = torch.arange(context, dtype=torch.float32, device=device)
    angles = positions[:, None] * frequencies.to(device)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
