"""The base as files, read without torch: modules and digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from router.engine.base import BaseInfo
from router.engine.checkpoint import Tensor, digest_of, sites_of, tensors_of
from router.errors import ConfigError


def find_base(model: str) -> Path | None:
    """The base's folder, checked; None for a known base that was not fetched yet (nothing is downloaded)."""
    from router.models import DEFAULT_BASE, cached_base, resolve_model

    return cached_base() if model.lower() == DEFAULT_BASE else resolve_model(model)


def read_base(folder: Path, name: str, with_digest: bool) -> BaseInfo:
    """Linear modules with their shapes, and the digest where it is wanted (it reads every byte)."""
    tensors = tensors_of(folder)
    if not tensors:
        raise ConfigError(f"{folder} holds no safetensors: set model to another base, or say --no-base")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return BaseInfo(
        name=name,
        digest=base_digest_of(folder, name, tensors) if with_digest else "",
        architecture=next(iter(config.get("architectures") or ["unknown"])),
        dtype=next((t.dtype for t in tensors.values()), ""),
        device="",
        context_length=int(config.get("max_position_embeddings") or 0),
        vocab_size=int(config.get("vocab_size") or 0),
        sites=sites_of(tensors),
    )


def base_digest_of(folder: Path, name: str, tensors: dict[str, Tensor]) -> str:
    """As the engine's `base_digest`: from the bytes where they are bfloat16, else by loading the model."""
    if any(tensor.dtype != "BF16" for tensor in tensors.values()):
        from router.engine.loader import base_digest, load_model

        return base_digest(load_model(folder, name).model)
    return digest_of(tensors)
