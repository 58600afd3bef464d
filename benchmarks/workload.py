"""The standard workload on torch: engines, random adapters, and one round of this engine or of PEFT."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file

from benchmarks.answering import RANK, TARGETS
from router.config import Settings
from router.engine.base import AdapterArtifact, Finished, Job, SiteDelta, TensorData
from router.engine.torch_engine import TorchEngine
from router.types import SamplingParams, Usage

MADE = 8  # sets of random weights among the folders of `write_adapters`


def start(model: str, dtype: str, *, native: bool, quantize: str = "none") -> TorchEngine:
    """A running engine with default settings, but one token of an answer a step: no speculation."""
    said: dict[str, Any] = {"model": model, "dtype": dtype, "native": native, "quantize": quantize}
    engine = TorchEngine(Settings(**said, slots=32), speculation=False)
    engine.start()
    print(f"engine: {engine.info.kernels}, {engine.info.precision}")
    return engine


def sites(model: Any) -> dict[str, tuple[int, int]]:
    """[outputs, inputs] of the linear layers of a transformers model that adapters change."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in TARGETS
    }


def random_adapter(name: str, sites: Mapping[str, tuple[int, int]], rank: int = RANK) -> AdapterArtifact:
    """An adapter of random bfloat16 weights over all sites, small enough to leave the text sane.

    A number as the name gives the same weights in every process, whatever the order of `sites`.
    """
    generator = torch.Generator().manual_seed(hash(name) % 2**31 if not name.isdigit() else int(name))
    deltas = {
        site: SiteDelta(
            _data(torch.randn(rank, inputs, generator=generator) * 0.02),
            _data(torch.randn(outputs, rank, generator=generator) * 0.02),
            2.0,
        )
        for site, (outputs, inputs) in sorted(sites.items())
    }
    return AdapterArtifact(name, "1", f"digest-{name}", deltas)


def _data(tensor: torch.Tensor) -> TensorData:
    raw = bytearray(tensor.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return TensorData("BF16", tuple(tensor.shape), memoryview(raw))


def export(artifact: AdapterArtifact, root: Path, rank: int = RANK) -> Path:
    """The adapter as a PEFT folder."""
    folder = root / artifact.name
    folder.mkdir()
    tensors = {}
    for site, delta in artifact.sites.items():
        for part, data in (("lora_A", delta.a), ("lora_B", delta.b)):
            value = torch.frombuffer(data.data, dtype=torch.bfloat16).view(data.shape)
            tensors[f"base_model.model.{site}.{part}.weight"] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": TARGETS,
        "bias": "none",
        "base_model_name_or_path": "",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_adapters(root: Path, count: int, rank: int, sites: dict[str, tuple[int, int]]) -> None:
    """`count` folders; a few sets of random weights, of which every copy has some numbers of its own."""
    made = [export(random_adapter(str(i), sites, rank), root, rank) for i in range(min(MADE, count))]
    config = (made[0] / "adapter_config.json").read_bytes()
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in made]
    for i in track(range(MADE, count), description="writing adapters", transient=True):
        folder = root / str(i)
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes(config)
        # The file ends with weights: four bfloat16 numbers between 0.0078 and 0.03 that spell the number.
        own = b"".join(bytes([(i >> shift) & 15, 0x3C]) for shift in (0, 4, 8, 12))
        (folder / "adapter_model.safetensors").write_bytes(weights[i % MADE][: -len(own)] + own)


def jobs(tokens: Sequence[list[int]], adapters: Sequence[str | None], new: int) -> list[Job]:
    """One job a prompt, `new` tokens each; adapters are dealt round-robin."""
    params = SamplingParams(max_tokens=new, min_tokens=new)
    return [Job(str(i), prompt, params, adapters[i % len(adapters)]) for i, prompt in enumerate(tokens)]


async def run_jobs(engine: TorchEngine, work: Sequence[Job]) -> tuple[float, int]:
    """Seconds and generated tokens for all jobs at once."""
    seconds, found = await usages(engine, work)
    return seconds, sum(usage.completion_tokens for usage in found)


async def usages(engine: TorchEngine, work: Sequence[Job]) -> tuple[float, list[Usage]]:
    """Seconds for all jobs at once, and what each took."""
    start = time.perf_counter()
    found = await asyncio.gather(*(_usage(engine, job) for job in work))
    return time.perf_counter() - start, found


async def _usage(engine: TorchEngine, job: Job) -> Usage:
    async for event in engine.submit(job):
        if isinstance(event, Finished):
            return event.usage
    raise RuntimeError("a generation ended without Finished")


def peft_model(base: Any, artifacts: Sequence[AdapterArtifact], rank: int = RANK) -> Any:
    """The same adapters in PEFT, on `base`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base, config, adapter_name="a0", autocast_adapter_dtype=False)
    for i in range(1, len(artifacts)):
        model.add_adapter(f"a{i}", config)
    with torch.no_grad():
        for i, artifact in enumerate(artifacts):
            for site, delta in artifact.sites.items():
                layer = model.base_model.model.get_submodule(site)
                for part, data in ((layer.lora_A, delta.a), (layer.lora_B, delta.b)):
                    value = torch.frombuffer(data.data, dtype=torch.bfloat16).view(data.shape)
                    part[f"a{i}"].weight.copy_(value)
    return model.to(next(base.parameters()).dtype).eval()


def peft_generate(
    model: Any, tokens: Sequence[list[int]], names: Sequence[str] | None, new: int
) -> tuple[float, int]:
    """One static batch through PEFT's mixed-adapter generate; seconds and generated tokens."""
    longest = max(len(t) for t in tokens)
    ids = torch.tensor([[0] * (longest - len(t)) + list(t) for t in tokens])
    mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in tokens])
    ids, mask = ids.to(model.device), mask.to(model.device)
    more = {"adapter_names": list(names)} if names is not None else {}
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **more,
        )
    if out.is_cuda:
        torch.cuda.synchronize(out.device)
    return time.perf_counter() - start, (out.shape[1] - longest) * out.shape[0]
