"""Where a stage of `make bench-gpu` runs, what it has found, and the random base that it measures."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.answering import prompts
from benchmarks.workload import random_adapter
from router.config import Settings
from router.engine.base import AdapterArtifact
from router.engine.loader import LoadedModel, load_model
from router.engine.torch_engine import TorchEngine
from router.models import resolve_model

BASE = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of random weights, and the work it is measured with."""

    config: Mapping[str, int]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    adapters: tuple[int, ...]
    new: int
    repeats: int


LARGE = Shape(
    config={
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    rows=(1, 8, 32),
    contexts=(128, 1024),
    adapters=(0, 1, 8, 32),
    new=64,
    repeats=50,
)
SMALL = Shape(
    config={
        "vocab_size": 1200,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    rows=(1, 2),
    contexts=(24,),
    adapters=(0, 2),
    new=3,
    repeats=2,
)


@dataclass(slots=True)
class Place:
    """Where a stage runs, and what it has found so far."""

    device: torch.device
    out: Path
    rehearsed: bool
    vllm_python: str = ""
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """What is measured."""
        return SMALL if self.rehearsed else LARGE

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return torch.float32 if self.rehearsed else torch.bfloat16

    def row(self, **values: Any) -> None:
        """Add a row, and write what there is: the process may be ended at any time."""
        self.rows.append(values)
        self.write()

    def note(self, text: str) -> None:
        """Add a remark."""
        self.notes.append(text)
        self.write()

    def fail(self, why: str) -> None:
        """Note that something is not as it should be."""
        self.failed.append(why)
        self.write()

    def write(self) -> None:
        """The state as JSON, replaced in one step."""
        state = {"rows": self.rows, "notes": self.notes, "failed": "; ".join(self.failed)}
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(state))
        part.replace(self.out)

    def wait(self) -> None:
        """Until the device has done what was started."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 0) -> float:
        """Median time of `work` after one call to warm up: by CUDA's events, or else by a clock."""
        count = repeats or self.shape.repeats
        work()
        self.wait()
        if self.device.type != "cuda":
            return median(_clocked(work) for _ in range(count))
        cold = torch.empty(64 << 20, dtype=torch.int8, device=self.device)  # larger than the second cache
        pairs = []
        for _ in range(count):
            cold.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            pairs.append((begin, end))
        self.wait()
        return 1e-3 * median(float(begin.elapsed_time(end)) for begin, end in pairs)


def _clocked(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def random_prompts(vocabulary: int, count: int, length: int) -> list[list[int]]:
    """Random prompts of that length, all different from the first token on."""
    found = prompts(max(vocabulary, 1001), seed=length, count=count)
    return [[n, *(one * (length // len(one) + 1))][:length] for n, one in enumerate(found)]


def random_model(place: Place) -> Any:
    """A Llama of the shape, made on the device: nothing is read, nothing is downloaded."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**place.shape.config, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(1)
    with torch.device(place.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=place.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.02)
    return model.eval().requires_grad_(False)


def random_engine(place: Place, **more: Any) -> tuple[TorchEngine, list[AdapterArtifact]]:
    """The engine on such a model, with its adapters in memory."""
    loaded = LoadedModel(random_model(place), load_model(resolve_model(BASE), BASE).tokenizer, "random")
    dtype = str(place.dtype).removeprefix("torch.")
    engine = TorchEngine(settings(place, dtype=dtype, **more), loaded, prefix_cache=False)
    engine.start()
    place.note(
        f"engine: {engine.info.kernels}, {engine.info.precision}, {engine.info.size_bytes / 1e9:.2f} GB"
    )
    artifacts = [random_adapter(str(n), engine.info.sites) for n in range(max(place.shape.adapters))]
    for artifact in artifacts:
        place.runner.run(engine.load(artifact))
    return engine, artifacts


def settings(place: Place, **more: Any) -> Settings:
    cache: dict[str, Any] = {"cache_tokens": 4096} if place.rehearsed else {}
    values: dict[str, Any] = {"device": str(place.device), "native": not place.rehearsed, "slots": 32}
    return Settings(**(values | cache | more))


def emptied(place: Place) -> None:
    """Give the device's memory back: the next contestant has it to itself."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
