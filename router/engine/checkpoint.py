"""A base as files, read without torch and without its weights in memory: identity, linear layers, ends."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}  # bytes, by safetensors' names
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_QUIET_NAN = 0x7FC0


def float32_of(dtype: str, data: bytes | memoryview) -> NDArray[np.float32]:
    """The values that are stored there, flat."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.float16 if dtype == "F16" else np.float32).astype(np.float32)


def stored_as(dtype: str, values: NDArray[np.float32]) -> bytes:
    """The values rounded to the nearest that `dtype` has, ties to even, as torch rounds."""
    if dtype == "F32":
        return np.ascontiguousarray(values, np.float32).tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).tobytes()
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = _QUIET_NAN
    return rounded.tobytes()


NOT_LINEAR = ("embed_tokens", "wte", "wpe", "lm_head")
HEAD = "lm_head.weight"
NO_PARAMETERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")  # buffers that old files hold, too
BLOCK = 1 << 24  # bytes read at once


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a weight of the base lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a few million at a time."""
        with self.file.open("rb") as opened:
            opened.seek(self.start)
            left = self.end - self.start
            while left:
                block = opened.read(min(BLOCK, left))
                if len(block) < min(BLOCK, left):
                    raise EOFError(f"{self.file.name} is shorter than its header says")
                left -= len(block)
                yield block


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All weights in the safetensors files of a folder, by name."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                at = 8 + length
                found[name] = Tensor(file, entry["dtype"], tuple(entry["shape"]), at + start, at + end)
    return found


def sites_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Linear modules, each with its outputs and inputs."""
    return {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and not _is_table(name)
    }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The base's identity as `router.engine.loader.base_digest` computes it of the loaded model.

    The same for files that name weights as transformers does, in bfloat16, float16 or float32. Weights of
    other kinds, such as those of a quantised base, count by their bytes.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if name.endswith(NO_PARAMETERS) or (name == HEAD and _is_tied(tensors)):
            continue
        total.update(f"{name} {tensor.shape}\n".encode())
        for block in tensor.blocks():
            plain = tensor.dtype == "BF16" or tensor.dtype not in WIDTHS
            total.update(block if plain else stored_as("BF16", float32_of(tensor.dtype, block)))
    return total.hexdigest()


def config_of(folder: Path) -> dict[str, Any]:
    """The base's config.json; of one that reads more than text, with the text model's entries."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config | (config.get("text_config") or {}) | {"architectures": config.get("architectures")}


def ends_of(folder: Path) -> frozenset[int]:
    """Tokens that end an answer, as generation_config.json says, or else config.json."""
    file = folder / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else config_of(folder)
    value = config.get("eos_token_id")
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def cache_bytes(config: Mapping[str, Any], width: int) -> int:
    """What the keys and values of one token take, in numbers of `width` bytes."""
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    kept = int(config.get("num_key_value_heads") or heads)
    return 2 * width * size * kept * int(config["num_hidden_layers"])


def _is_table(name: str) -> bool:
    return name.removesuffix(".weight").rpartition(".")[2] in NOT_LINEAR


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the head was stored although it is the table of embeddings."""
    head = tensors[HEAD]
    table = next((t for name, t in tensors.items() if name.endswith("embed_tokens.weight")), None)
    if table is None or (table.shape, table.dtype) != (head.shape, head.dtype):
        return False
    return all(a == b for a, b in zip(head.blocks(), table.blocks(), strict=True))
