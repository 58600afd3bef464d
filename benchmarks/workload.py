"""The standard workload: 16 requests of about 90 prompt tokens, 64 new tokens each, random adapters."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from router.engine.base import AdapterArtifact, Finished, Job, SiteDelta, TensorData
from router.engine.torch_engine import TorchEngine
from router.types import SamplingParams

REQUESTS, PROMPT_TOKENS, NEW_TOKENS, RANK = 16, 90, 64, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def prompts(vocabulary: int, seed: int = 0, count: int = REQUESTS) -> list[list[int]]:
    """Random token ids (no special ones), all different from the first token on: no prefix is shared."""
    rng = random.Random(seed)
    return [
        [rng.randrange(1000, vocabulary) for _ in range(PROMPT_TOKENS + rng.randint(-8, 8))]
        for _ in range(count)
    ]


def random_adapter(name: str, sites: dict[str, tuple[int, int]], rank: int = RANK) -> AdapterArtifact:
    """An adapter of random bfloat16 weights over all sites, small enough to leave the text sane."""
    generator = torch.Generator().manual_seed(hash(name) % 2**31 if not name.isdigit() else int(name))
    deltas = {
        site: SiteDelta(
            _data(torch.randn(rank, inputs, generator=generator) * 0.02),
            _data(torch.randn(outputs, rank, generator=generator) * 0.02),
            2.0,
        )
        for site, (outputs, inputs) in sites.items()
    }
    return AdapterArtifact(name, "1", f"digest-{name}", deltas)


def _data(tensor: torch.Tensor) -> TensorData:
    raw = bytearray(tensor.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return TensorData("BF16", tuple(tensor.shape), memoryview(raw))


def jobs(tokens: Sequence[list[int]], adapters: Sequence[str | None], run: int) -> list[Job]:
    """One job a prompt; adapters are dealt round-robin. The run number changes every prompt's first token."""
    params = SamplingParams(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
    return [
        Job(f"{run}-{i}", [1000 + run, *prompt[1:]], params, adapters[i % len(adapters)])
        for i, prompt in enumerate(tokens)
    ]


async def run_jobs(engine: TorchEngine, work: Sequence[Job]) -> tuple[float, int]:
    """Seconds and generated tokens for all jobs at once."""
    start = time.perf_counter()
    counts = await asyncio.gather(*(_consume(engine, job) for job in work))
    return time.perf_counter() - start, sum(counts)


async def _consume(engine: TorchEngine, job: Job) -> int:
    async for event in engine.submit(job):
        if isinstance(event, Finished):
            return event.usage.completion_tokens
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


def peft_generate(model: Any, tokens: Sequence[list[int]], names: Sequence[str] | None) -> tuple[float, int]:
    """One static batch through PEFT's mixed-adapter generate; seconds and generated tokens."""
    longest = max(len(t) for t in tokens)
    ids = torch.tensor([[0] * (longest - len(t)) + list(t) for t in tokens])
    mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in tokens])
    more = {"adapter_names": list(names)} if names is not None else {}
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            **more,
        )
    return time.perf_counter() - start, (out.shape[1] - longest) * out.shape[0]
