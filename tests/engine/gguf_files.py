"""Small GGUF files made on the spot: random models of `tiny` as llama.cpp's converter lays them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from router.engine.blocks import FORMS, BlockWeight
from router.engine.gguf_base import _IN_LAYER, _WHOLE
from tests.engine import tiny

KINDS: Any = gguf.GGMLQuantizationType
PLAIN = {KINDS.F32: torch.float32, KINDS.F16: torch.float16, KINDS.BF16: torch.bfloat16}
# Of each part of a layer; the rest, and norms, are float32.
MIXED = {
    "attn_q": KINDS.Q4_0,
    "attn_k": KINDS.Q4_0,
    "attn_v": KINDS.Q8_0,
    "attn_output": KINDS.Q4_1,
    "ffn_gate": KINDS.Q4_1,
    "ffn_up": KINDS.Q4_1,
    "ffn_down": KINDS.F16,
    "output": KINDS.Q8_0,
    "token_embd": KINDS.Q8_0,
}


def write(
    file: Path,
    kind: str,
    types: dict[str, Any],
    extra: dict[str, torch.Tensor] | None = None,
    **facts: str | int,
) -> dict[str, torch.Tensor]:
    """`tiny.model(kind)` with weights of these types; returns what they stand for, by transformers' names.

    `extra`: more tensors. `facts` take the place of its own, "__" is for ".".
    """
    model = tiny.model(kind)
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(file, config.model_type)
    _facts(writer, config)
    _tokenizer(writer)
    for key, value in facts.items():
        name = key.replace("__", ".")
        for known in writer.kv_data:
            known.pop(name, None)
        if isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, value)
    served: dict[str, torch.Tensor] = {}
    names = {hf: own for own, hf in _WHOLE.items()}
    for name, values in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        own = names.get(name) or _in_layer(name)
        part = own.split(".")[-2]
        wanted = types.get(part, KINDS.F32) if values.ndim > 1 else KINDS.F32
        order = _order(config, part)
        laid = values if order is None else values[order]
        raw, stands_for = _stored(laid, wanted)
        writer.add_tensor(own, raw, raw_dtype=wanted)
        back = torch.empty_like(stands_for)
        back[order if order is not None else slice(None)] = stands_for
        served[name] = back
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return served


def _in_layer(name: str) -> str:
    _, _, index, *parts, leaf = name.split(".")
    own = next(own for own, hf in _IN_LAYER.items() if hf == ".".join(parts))
    return f"blk.{index}.{own}.{leaf}"


def _order(config: Any, part: str) -> torch.Tensor | None:
    """The rows of q and k as llama.cpp's converter has them: the two halves of each head in turn."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
    if heads is None or config.model_type != "llama":
        return None
    size = config.head_dim
    return torch.arange(heads * size).view(heads, 2, size // 2).transpose(1, 2).flatten()


def _stored(values: torch.Tensor, kind: Any) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """The bytes, and what they stand for."""
    if kind in PLAIN:
        rounded = values.to(PLAIN[kind])
        raw = rounded.view(torch.uint8 if kind == KINDS.BF16 else rounded.dtype).numpy()
        return raw, rounded.float()
    blocks = gguf.quants.quantize(values.numpy(), kind)
    return blocks, BlockWeight(FORMS[int(kind)], torch.from_numpy(blocks)).floats()


def _facts(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(tiny_head(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def tiny_head(config: Any) -> int:
    """Numbers in a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _tokenizer(writer: Any) -> None:
    vocabulary = tiny.tokenizer().get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    special, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([special if word in ("<pad>", "<end>") else normal for word in words])
    writer.add_eos_token_id(vocabulary["<end>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
