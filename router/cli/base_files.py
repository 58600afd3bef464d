"""The base as files, read without torch: modules, digest, and its whole matrices to compare with."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.engine.base import BaseInfo, TensorData
from router.errors import ConfigError

TIED = {"lm_head": "model.embed_tokens"}  # stored once where the base shares them
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
BLOCK = 1 << 22  # values compared at once
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
    if not tensors:
        raise ConfigError(f"{folder} holds no safetensors: name another base with --model, or say --no-base")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sites = {
        tensor_name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for tensor_name, tensor in tensors.items()
        if len(tensor.shape) == 2 and tensor_name.endswith(".weight") and not _is_table(tensor_name)
    }
    return BaseInfo(
        name=name,
        digest=base_digest_of(folder, name, tensors) if with_digest else "",
        architecture=next(iter(config.get("architectures") or ["unknown"])),
        dtype=next((t.dtype for t in tensors.values()), ""),
        device="",
        context_length=int(config.get("max_position_embeddings") or 0),
        vocab_size=int(config.get("vocab_size") or 0),
        sites=sites,
    )


def equals_base(folder: Path) -> Callable[[str, TensorData], bool]:
    """Tells whether a whole matrix that was saved with an adapter has the base's very values."""
    tensors = dict(_tensors(folder))

    def equals(module: str, given: TensorData) -> bool:
        own = tensors.get(f"{module}.weight") or tensors.get(f"{TIED.get(module, module)}.weight")
        return own is not None and own.shape == tuple(given.shape) and _same_values(own, given)

    return equals


def base_digest_of(folder: Path, name: str, tensors: dict[str, Tensor]) -> str:
    """As the engine's `base_digest`: from the bytes where they are bfloat16, else by loading the model."""
    if any(tensor.dtype != "BF16" for tensor in tensors.values()):
        from router.engine.model.loader import base_digest, load_model

        return base_digest(load_model(folder, name).model)
    total = hashlib.sha256()
    for tensor_name, tensor in sorted(tensors.items()):
        total.update(f"{tensor_name} {tensor.shape}\n".encode())
        with tensor.file.open("rb") as opened:
            opened.seek(tensor.start)
            total.update(opened.read(tensor.end - tensor.start))
    return total.hexdigest()


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                at = 8 + length
                yield name, Tensor(file, entry["dtype"], tuple(entry["shape"]), at + start, at + end)


def _is_table(tensor_name: str) -> bool:
    return tensor_name.removesuffix(".weight").rpartition(".")[2] in NOT_LINEAR


def _same_values(own: Tensor, given: TensorData) -> bool:
    import numpy as np

    width, other = WIDTHS.get(own.dtype), WIDTHS.get(given.dtype)
    if width is None or other is None:
        return False
    with own.file.open("rb") as opened:
        opened.seek(own.start)
        for at in range(0, (own.end - own.start) // width, BLOCK):
            mine = _float32(own.dtype, opened.read(min(BLOCK * width, own.end - opened.tell())))
            theirs = _float32(given.dtype, given.data[at * other : (at + BLOCK) * other])
            if not np.array_equal(mine, theirs):
                return False
    return True


def _float32(dtype: str, data: bytes | memoryview) -> Any:
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.float16 if dtype == "F16" else np.float32).astype(np.float32)
