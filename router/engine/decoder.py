"""A decoder of a known architecture as its config says it: names and shapes of weights, and positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any

import torch

from router.engine.checkpoint import CLASSES, HEAD
from router.models.importing import import_transformers

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
O, DOWN = "self_attn.o_proj", "mlp.down_proj"  # noqa: E741
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
NORMS = ("input_layernorm", "post_attention_layernorm")
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
ROUTER, EXPERTS = "mlp.gate", ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
SILU, GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)


@dataclass(frozen=True, slots=True)
class Architecture:
    """How the decoders of one `model_type` differ from Llama's."""

    qkv: tuple[str, ...] = QKV
    gate_up: tuple[str, ...] = GATE_UP
    norms: tuple[str, str] = NORMS  # before attention and before the gated unit
    out_norms: tuple[str, ...] = ()  # of what these add
    norm_offset: float = 0.0  # added to the weights of norms
    qk_norm: bool = False  # each head of q and k is normed
    qkv_bias: bool = False
    scaled_embeddings: bool = False  # by the root of their width
    experts: bool = False  # mixtures of gated units

    @property
    def sites(self) -> tuple[tuple[str, ...], ...]:
        """Linear layers that read the same input and that adapters may change, in the order of a layer."""
        return (self.qkv, (O,), *(((), ()) if self.experts else (self.gate_up, (DOWN,))))


_GEMMA2 = Architecture(
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    out_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    norm_offset=1.0,
    scaled_embeddings=True,
)
ARCHITECTURES = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "qwen2": Architecture(qkv_bias=True),
    "qwen3": Architecture(qk_norm=True),
    "qwen3_moe": Architecture(qk_norm=True, experts=True),
    "phi3": Architecture(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
    "gemma": Architecture(norm_offset=1.0, scaled_embeddings=True),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, qk_norm=True),
}  # by transformers' `model_type`


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
    return not said["model_type"].startswith("qwen") or said.get("use_sliding_window") is not False


def head_size(config: Any) -> int:
    """Numbers in one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def why_not_packed(config: Any, context: int) -> str:
    """Empty if the fast path can run a model of this config, else the reason for the generic path."""
    if config.model_type not in ARCHITECTURES:
        return f"models of type {config.model_type!r} have layers of another shape"
    if _activation(config) not in (*SILU, *GELU):
        return f"activation {_activation(config)!r}"
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        return "some layers are mixtures of experts and some are not"
    if getattr(config, "use_bidirectional_attention", None):
        return "tokens see those after them"
    for rope in _ropes(config).values():
        if rope["rope_type"] == "dynamic":
            return "rotary positions of type 'dynamic' depend on the length"
        original = rope.get("original_max_position_embeddings", context)
        if rope["rope_type"] == "longrope" and context > original:
            return (
                f"rotary positions of type 'longrope' depend on the length beyond {original} tokens: "
                f"max_context = {original} avoids that"
            )
    return ""


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))


def _ropes(config: Any) -> dict[str, Mapping[str, Any]]:
    """Parameters of rotary positions by kind of layer; "": all kinds have the same."""
    found = config.rope_parameters
    return {"": found} if "rope_type" in found else {kind: found[kind] for kind in set(config.layer_types)}


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What a config says of a decoder of one of `ARCHITECTURES`."""

    architecture: Architecture
    layers: int
    hidden: int
    inner: int  # of an expert where there are some
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    eps: float  # of every norm
    scale: float  # of attention's scores
    gelu: bool  # the gated unit's function, else silu
    tied: bool  # the head is the table of embeddings
    biases: frozenset[str]  # linear layers of a layer that have one
    windows: tuple[int, ...]  # tokens that a token of each layer sees; 0: all before it
    ropes: tuple[str, ...]  # the kind of each layer's rotary positions
    score_cap: float  # attention's scores are cap * tanh(score / cap), and logits too; 0: as they are
    logit_cap: float
    experts: int  # in a layer, 0: there are none
    top: int  # of them for a token
    shares: bool  # whose weights sum to 1

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Of the config as transformers has it."""
        architecture = ARCHITECTURES[config.model_type]
        attention, gated = getattr(config, "attention_bias", False), getattr(config, "mlp_bias", False)
        if architecture.qkv_bias:
            biases = {*QKV}
        else:
            biases = {*((*QKV, O) if attention else ()), *((*GATE_UP, DOWN) if gated else ())}
        layers, head = int(config.num_hidden_layers), head_size(config)
        window = int(getattr(config, "sliding_window", None) or 0)
        kinds = list(getattr(config, "layer_types", None) or ["sliding_attention"] * layers)
        return cls(
            architecture=architecture,
            layers=layers,
            hidden=int(config.hidden_size),
            inner=int(config.moe_intermediate_size if architecture.experts else config.intermediate_size),
            heads=int(config.num_attention_heads),
            kv_heads=int(config.num_key_value_heads),
            head_dim=head,
            vocabulary=int(config.vocab_size),
            eps=float(config.rms_norm_eps),
            scale=float(getattr(config, "query_pre_attn_scalar", head) ** -0.5),
            gelu=_activation(config) in GELU,
            tied=bool(config.tie_word_embeddings),
            biases=frozenset(biases),
            windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
            ropes=tuple("" if "" in _ropes(config) else kind for kind in kinds),
            score_cap=float(getattr(config, "attn_logit_softcapping", None) or 0.0),
            logit_cap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
            experts=int(config.num_experts) if architecture.experts else 0,
            top=int(config.num_experts_per_tok) if architecture.experts else 0,
            shares=bool(getattr(config, "norm_topk_prob", False)),
        )

    def linear(self, site: str) -> tuple[int, int]:
        """Outputs and inputs of a linear layer of a layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if site in self.architecture.qkv:
            fused = len(self.architecture.qkv) == 1
            return q + 2 * kv if fused else q if site == QKV[0] else kv, self.hidden
        if site == O:
            return self.hidden, q
        if site == DOWN:
            return self.hidden, self.inner
        return 2 * self.inner // len(self.architecture.gate_up), self.hidden

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
        norms = (*self.architecture.norms, *self.architecture.out_norms)
        found: dict[str, tuple[int, ...]] = {f"{name}.weight": (self.hidden,) for name in norms}
        if self.architecture.qk_norm:
            found |= {f"{name}.weight": (self.head_dim,) for name in QK_NORMS}
        for name in (name for names in self.architecture.sites for name in names):
            found[f"{name}.weight"] = self.linear(name)
            if name in self.biases:
                found[f"{name}.bias"] = self.linear(name)[:1]
        if self.experts:
            found[f"{ROUTER}.weight"] = (self.experts, self.hidden)
            found[EXPERTS[0]] = (self.experts, 2 * self.inner, self.hidden)
            found[EXPERTS[1]] = (self.experts, self.hidden, self.inner)
        return found


def layer_name(index: int) -> str:
    """The prefix of a layer's names."""
    return f"model.layers.{index}"


def rotary_table(
    config: Any, context: int, device: torch.device, layers: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin float32 [positions, rotated numbers of a head] of the first `context` positions.

    `layers`: the kind of layers that rotate so, where kinds differ. From frequencies in float32 and not
    rounded. transformers rounds both to the model's dtype. Here they are multiplied in float32, and over
    8,000 tokens the unrounded table is nearer to the model in float32.
    """
    rope, scale = _ropes(config)[layers], 1.0
    if rope["rope_type"] == "default":  # Su et al. 2021
        size = int(head_size(config) * rope.get("partial_rotary_factor", 1.0))
        powers = torch.arange(0, size, 2, dtype=torch.float32) / size
        frequencies = 1.0 / (rope["rope_theta"] ** powers)
    else:
        import_transformers()
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        kind = {"layer_type": layers} if layers else {}
        frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), **kind)
    positions = torch.arange(context, dtype=torch.float32, device=device)
    angles = positions[:, None] * frequencies.to(device)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
