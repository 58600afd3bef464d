"""The base as it comes from disk: the transformers model, its identity, and the device and dtype for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from router.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_PLAIN = frozenset((*_DTYPES.values(), torch.float64))


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What came from disk: the model in its checkpoint's dtype, on the CPU."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_model(source: str | Path, name: str) -> LoadedModel:
    """Any causal language model that transformers loads; no code from the checkpoint runs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name!r} cannot be loaded: {error}") from error
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, name)


def place(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to `device` in `dtype`; its rotary frequencies stay in float32, as they were loaded.

    In bfloat16 a frequency is up to 0.33 % off, and the angle of a late position by many turns.
    Raises ConfigError for weights that are not plain floating-point numbers: `to` would take float8 or
    integers at face value, without the scales that belong to them.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype not in _PLAIN:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"the base's weight {name} is stored as {kind}, which is not served: give a checkpoint in "
                "bfloat16, float16 or float32"
            )
    exact = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    model.to(device, dtype)
    for module, name, buffer in exact:
        setattr(module, name, buffer.to(device))


def base_digest(model: nn.Module) -> str:
    """The base's identity, as adapters' manifests pin it: sha256 hex over all parameters.

    Of every parameter name, shape and value count, tied weights once, in the order of names.
    Values are rounded to bfloat16 first, so that a checkpoint has one digest whether it is
    loaded as bfloat16 or as float32. (As float16 too, unless it holds values below 2**-24.)
    Call it on the model as loaded, before any layer is swapped or wrapped.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(remove_duplicate=True)):
        values = parameter.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pick_device(wanted: str) -> torch.device:
    """`auto` takes the first CUDA device, else the CPU. A CUDA device always has its number."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"device {wanted!r} is not known to torch") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but this torch sees no CUDA device")
    found, index = torch.cuda.device_count(), device.index or 0
    if index >= found:
        raise ConfigError(
            f"device {wanted} was asked for, but this torch sees {found} CUDA device(s), from 0 on"
        )
    return torch.device("cuda", index)


def use_device(device: torch.device) -> None:
    """For every thread that works on it: kernels, pinned memory and graphs go to the thread's own device."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the device multiplies it natively, else float16 (CUDA) or float32."""
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def context_length(config: Any, limit: int) -> int:
    """The base's own limit, or the smaller one that was asked for."""
    own = int(getattr(config, "max_position_embeddings", 0) or 2048)
    return min(own, limit) if limit else own


def end_tokens(model: Any) -> frozenset[int]:
    """Tokens that end an answer as the model's generation config says."""
    value = getattr(model.generation_config, "eos_token_id", None)
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
