"""The base that `adapters validate` compares with: its modules and digest, read from files without torch."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.engine.base import BaseInfo
from router.errors import ConfigError

NOT_LINEAR = ("embed_tokens", "wte", "wpe", "lm_head")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a weight of the base lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def find_base(model: str) -> Path | None:
    """The base's folder; None for a known base that was not fetched yet (nothing is downloaded)."""
    from router.models import DEFAULT_BASE, models_dir, resolve_model

    if model.lower() == DEFAULT_BASE and not any(models_dir().glob(f"{DEFAULT_BASE}-*")):
        return None
    return resolve_model(model)


def read_base(folder: Path, name: str, with_digest: bool) -> BaseInfo:
    """Linear modules with their shapes, and the digest where it is wanted (it reads every byte)."""
    tensors = dict(_tensors(folder))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sites = {
        tensor_name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for tensor_name, tensor in tensors.items()
        if len(tensor.shape) == 2 and tensor_name.endswith(".weight") and not _is_table(tensor_name)
    }
    return BaseInfo(
        name=name,
        digest=digest(folder, name, tensors) if with_digest else "",
        architecture=next(iter(config.get("architectures") or ["unknown"])),
        dtype=next((t.dtype for t in tensors.values()), ""),
        device="",
        context_length=int(config.get("max_position_embeddings") or 0),
        vocab_size=int(config.get("vocab_size") or 0),
        sites=sites,
    )


def _is_table(tensor_name: str) -> bool:
    return tensor_name.removesuffix(".weight").rpartition(".")[2] in NOT_LINEAR


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no safetensors: name another base with --model, or say --no-base")
    for file in files:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                at = 8 + length
                yield name, Tensor(file, entry["dtype"], tuple(entry["shape"]), at + start, at + end)


def digest(folder: Path, name: str, tensors: dict[str, Tensor]) -> str:
    """As the engine's `base_digest`: from the bytes where they are bfloat16, else by loading the model."""
    if any(tensor.dtype != "BF16" for tensor in tensors.values()):
        from router.engine.digest import base_digest
        from router.engine.model.loader import load_model

        return base_digest(load_model(folder, name).model)
    total = hashlib.sha256()
    for tensor_name, tensor in sorted(tensors.items()):
        total.update(f"{tensor_name} {tensor.shape}\n".encode())
        with tensor.file.open("rb") as opened:
            opened.seek(tensor.start)
            total.update(opened.read(tensor.end - tensor.start))
    return total.hexdigest()
