"""The base model as training and evaluation use it, plain transformers, and the machine it runs on."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from router.engine.loader import base_digest
from router.models import DEFAULT_BASE, resolve_model

HUB_NAMES = {DEFAULT_BASE: "HuggingFaceTB/SmolLM2-135M-Instruct"}
MEMORY_PART = 4  # of the memory float32 weights may take at most, one in so many
PACKAGES = ("torch", "transformers", "peft")  # whose versions reports tell


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in bfloat16, its tokenizer and identity."""

    model: Any
    tokenizer: Any
    name: str  # as adapters record it: a hub id where there is one
    digest: str
    device: torch.device


def load_base(spec: str, device: str = "auto") -> LoadedBase:
    """Load the default base, a folder or a hub id. Raises ConfigError if it cannot be had."""
    from transformers import AutoModelForCausalLM

    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    tokenizer, folder = load_tokenizer(spec), resolve_model(spec)
    # On CPU the fused attention runs its backward pass slower than plain matmuls do at these lengths.
    attention = "sdpa" if place.type == "cuda" else "eager"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=attention)
    digest = base_digest(model)
    name = HUB_NAMES.get(spec.lower()) or (folder.name if Path(spec).expanduser().is_dir() else spec)
    return LoadedBase(model.to(place).eval(), tokenizer, name, digest, place)


def load_tokenizer(spec: str) -> Any:
    """The tokenizer of a base. Raises ConfigError if it cannot be had."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model(spec))


def faster_dtype(model: Any, device: torch.device) -> torch.dtype:
    """What to train in: bfloat16, or float32 on a processor that multiplies that faster, if there is memory.

    An x86 processor without AMX, or AMD's units for bfloat16, takes up to twice as long for it, and every
    bfloat16 is a float32. The same on every run of a machine: what is trained depends on it.
    """
    size = 4 * sum(weight.numel() for weight in model.parameters())
    fits = size < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MEMORY_PART
    slow = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and not _multiplies_bfloat16()
    return torch.float32 if fits and slow else torch.bfloat16


def _multiplies_bfloat16() -> bool:
    flags = set(_cpu("flags").split())
    return "amx_bf16" in flags or ("avx512_bf16" in flags and _cpu("vendor_id") == "AuthenticAMD")


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """In place; buffers stay what they are, such as the frequencies of positions, which want float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Date, processor or GPU, threads and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{device.type}: {name}",
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _cpu(field: str) -> str:
    """What Linux tells of the first processor; '' where it does not."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field)
    return next(values, "")


def _processor() -> str:
    return _cpu("model name") or platform.machine()
