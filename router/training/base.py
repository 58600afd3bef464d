"""The base model as training and evaluation use it, plain transformers, and the machine it runs on."""

from __future__ import annotations

import datetime
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from router.engine.model.loader import base_digest
from router.models import DEFAULT_BASE, resolve_model

HUB_NAMES = {DEFAULT_BASE: "HuggingFaceTB/SmolLM2-135M-Instruct"}
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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    folder = resolve_model(spec)
    # On CPU the fused attention runs its backward pass slower than plain matmuls do at these lengths.
    attention = "sdpa" if place.type == "cuda" else "eager"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=attention)
    digest = base_digest(model)
    name = HUB_NAMES.get(spec.lower()) or (folder.name if Path(spec).expanduser().is_dir() else spec)
    return LoadedBase(model.to(place).eval(), AutoTokenizer.from_pretrained(folder), name, digest, place)


def faster_dtype(model: Any, device: torch.device) -> torch.dtype:
    """What to train in: bfloat16, or float32 on a processor that multiplies that faster, if there is memory.

    Processors without matrix units for bfloat16 take up to twice as long for it, and every bfloat16 is a
    float32.
    """
    if device.type != "cpu" or not _fits(4 * sum(weight.numel() for weight in model.parameters())):
        return torch.bfloat16
    clear = 1.2  # times as fast: a near tie is not decided by the noise of a clock
    seconds = {dtype: _matmul_seconds(dtype) for dtype in (torch.bfloat16, torch.float32)}
    return torch.float32 if clear * seconds[torch.float32] < seconds[torch.bfloat16] else torch.bfloat16


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """In place; buffers stay what they are, such as the frequencies of positions, which want float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def _fits(size: int) -> bool:
    return size < 0.5 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _matmul_seconds(dtype: torch.dtype) -> float:
    """The least of several tries, for what a layer of a small base does to a batch."""
    rows, weights = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    least = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(rows, weights)
        least = min(least, time.perf_counter() - started)
    return least


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


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
