"""A tiny base and adapter folders for it, written byte by byte: no torch, no PEFT, no safetensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from router.engine.base import BaseInfo

HIDDEN, INNER, LAYERS, VOCAB, RANK = 16, 24, 2, 64, 4
PREFIX = "base_model.model."
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (8, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
}
SITES = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
BASE = BaseInfo(
    name="org/tiny-llama",
    digest="ab" * 32,
    architecture="llama",
    dtype="float32",
    device="cpu",
    context_length=128,
    vocab_size=VOCAB,
    sites=SITES,
)
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/tiny-llama",
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj", "up_proj"],
}
DTYPES = {"F32": "<f4", "F16": "<f2"}
Tensors = dict[str, np.ndarray]


def lora_tensors(
    rank: int = RANK, prefix: str = PREFIX, sites: Mapping[str, tuple[int, int]] = SITES
) -> Tensors:
    """A and B of every site, small random numbers, the same each time."""
    random = np.random.default_rng(0)
    tensors = {}
    for site, (out, into) in sites.items():
        tensors[f"{prefix}{site}.lora_A.weight"] = random.standard_normal((rank, into)).astype("<f4")
        tensors[f"{prefix}{site}.lora_B.weight"] = random.standard_normal((out, rank)).astype("<f4")
    return tensors


def header_of(tensors: Tensors) -> dict[str, Any]:
    """A safetensors header for `tensors`, in their order."""
    header: dict[str, Any] = {}
    at = 0
    for name, value in tensors.items():
        kind = {4: "F32", 2: "F16"}[value.itemsize]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    return header


def pack(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file; a header given as bytes is used as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors(tensors: Tensors) -> bytes:
    """A valid safetensors file."""
    return pack(header_of(tensors), b"".join(value.tobytes() for value in tensors.values()))


def write_adapter(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    weights: bytes | None = None,
    **files: str | bytes,
) -> Path:
    """A valid adapter folder, with some keys of its configuration, its weights or other files replaced.

    Keyword names stand for file names with '_' for the last dot: adapter_toml, probes_jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (folder / "adapter_model.safetensors").write_bytes(weights or safetensors(lora_tensors()))
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder
