"""Bases of the shape that people serve, with random weights: nothing is downloaded but the default base.

The shapes are those of the published config.json files. Speed and memory depend on the shape alone. The
tokenizer is the default base's, with a word for each further id, so that every id has a text.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from router.folders import cache_folder
from router.models import resolve_model

SEED = 0
DEVIATION = 0.02  # of random weights: `initializer_range` of the published configs
WEIGHTS = "model.safetensors"
SPARE = 2 << 30  # bytes of the disk that stay free


@dataclass(frozen=True, slots=True)
class Shape:
    """A published model. `parameters`: how many it has, tied weights once."""

    name: str
    published: str
    kind: str  # "llama" or "qwen3", as config.json's model_type
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    parameters: int

    @property
    def width_q(self) -> int:
        """Outputs of q_proj."""
        return self.heads * self.head_dim

    @property
    def width_kv(self) -> int:
        """Outputs of k_proj, and of v_proj."""
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> int:
        """Weights of the linear layers of all decoder layers, without the head."""
        attention = 2 * self.hidden * (self.width_q + self.width_kv)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in bfloat16."""
        return 2 * self.parameters

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens in bfloat16."""
        return 2 * 2 * self.width_kv * self.layers * tokens

    def prompt_operations(self, tokens: int) -> int:
        """Multiplications and additions to read a prompt: linear layers, causal attention, one row scored.

        A key is counted for the queries that may see it, and for no others.
        """
        seen = tokens * (tokens + 1) // 2
        attention = 2 * 2 * self.width_q * self.layers * seen
        return 2 * self.linear * tokens + attention + 2 * self.hidden * self.vocabulary


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-1b", "Llama-3.2-1B", "llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 1_235_814_400),
        Shape("qwen3-1.7b", "Qwen3-1.7B", "qwen3", 2048, 6144, 28, 16, 8, 128, 151936, 40960, 1_720_574_976),
        Shape("llama-3b", "Llama-3.2-3B", "llama", 3072, 8192, 28, 24, 8, 128, 128256, 131072, 3_212_749_824),
    )
}


def config_of(shape: Shape) -> dict[str, Any]:
    """config.json, with the special tokens of the default base's tokenizer."""
    config: dict[str, Any] = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[shape.kind]],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": DEVIATION,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.context,
        "model_type": shape.kind,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5 if shape.kind == "llama" else 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }
    if shape.kind == "llama":
        scaling = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return config | {
            "mlp_bias": False,
            "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192} | scaling,
        }
    return config | {
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": shape.layers,
    }


def weights_of(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of all weights, in the order of the file."""
    hidden, inner = shape.hidden, shape.inner
    yield "model.embed_tokens.weight", (shape.vocabulary, hidden)
    for index in range(shape.layers):
        at = f"model.layers.{index}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (shape.width_q, hidden)
        yield f"{at}.self_attn.k_proj.weight", (shape.width_kv, hidden)
        yield f"{at}.self_attn.v_proj.weight", (shape.width_kv, hidden)
        if shape.kind == "qwen3":
            yield f"{at}.self_attn.q_norm.weight", (shape.head_dim,)
            yield f"{at}.self_attn.k_norm.weight", (shape.head_dim,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, shape.width_q)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def sites_of(shape: Shape) -> dict[str, tuple[int, int]]:
    """[outputs, inputs] of the linear layers that adapters change."""
    return {
        name.removesuffix(".weight"): (size[0], size[1])
        for name, size in weights_of(shape)
        if len(size) == 2 and "layers" in name
    }


def made(shape: Shape) -> Path:
    """The folder of a base of this shape in the user's cache, written on first use."""
    folder = cache_folder() / "shapes" / f"{shape.name}-seed{SEED}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_room(folder, shape.weight_bytes)
    print(f"writing random weights of the shape of {shape.published} (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent) as held:
        part = Path(held) / "part"
        write(shape, part)
        os.replace(part, folder)
    return folder


def remove(folder: Path) -> None:
    """The base, and the files that were made of it."""
    shutil.rmtree(folder)
    for file in folder.parent.glob(f"{folder.name}-*"):
        file.unlink()


def make_room(file: Path, size: int) -> None:
    """Say what is written. Raises OSError where the disk has no room for so many bytes and some more."""
    free = shutil.disk_usage(file.parent).free
    if free < size + SPARE:
        have, need = free / 1e9, (size + SPARE) / 1e9
        raise OSError(errno.ENOSPC, f"{have:.1f} GB are free, and {need:.1f} GB are needed", str(file))
    print(f"{file}: {size / 1e9:.1f} GB", file=sys.stderr)


def write(shape: Shape, folder: Path) -> None:
    """The whole base. One weight is in memory at a time."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(shape), indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    _write_tokenizer(shape, folder)
    write_weights(shape, folder / WEIGHTS)


def write_weights(shape: Shape, file: Path) -> None:
    """As the format of safetensors has it: the length of the header, the header, the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in weights_of(shape):
        start, end = end, end + 2 * torch.Size(size).numel()
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for name, size in weights_of(shape):
            opened.write(_values(name, size).view(torch.uint8).numpy().data)
        opened.flush()
        os.fsync(opened.fileno())  # only what is on the disk can leave the page cache


def _values(name: str, size: tuple[int, ...]) -> torch.Tensor:
    """bfloat16 values, flat: ones of a norm, else random, the same at each writing."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED} {name}".encode()))
    values = torch.empty(torch.Size(size).numel(), dtype=torch.bfloat16)
    return values.normal_(0.0, DEVIATION, generator=generator)


def _write_tokenizer(shape: Shape, folder: Path) -> None:
    """The default base's, with an entry that no text is split into for each further id."""
    base = resolve_model("smollm2-135m-instruct")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, folder / name)
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    for number in range(len(words), shape.vocabulary):
        words[f"Ġ#{number}"] = number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
