"""The same answers on a CUDA device; runs where there is one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from router.engine.base import PoolingRequest
from tests.engine import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
async def test_mixed_batch_equals_peft_alone(kind: str, tmp_path: Path) -> None:
    made = tiny.engine(kind, device="cuda")
    tuned = {name: tiny.save_adapter(kind, tmp_path / name, seed) for seed, name in enumerate("ab")}
    digests = {}
    for name in tuned:
        artifact = tiny.artifact(tmp_path / name, made)
        await made.load(artifact)
        digests[name] = artifact.digest
    work = [(name, [seed * 7 + i for i in range(20)]) for seed in range(4) for name in tuned]
    answers = await asyncio.gather(*(tiny.answer(made, t, digests[n], max_tokens=8) for n, t in work))
    for (name, tokens), (ids, _) in zip(work, answers, strict=True):
        expected = tiny.reference(tuned[name], tokens, 8)
        assert ids == [t for t in expected if t != tiny.SHAPE["eos_token_id"]]
    made.close()


@pytest.mark.parametrize("depth", [0.5, 1.0])
async def test_readings_equal_those_of_the_cpu(depth: float) -> None:
    readings = [PoolingRequest(list(range(n, n + 20)), [1, 2, 3], depth) for n in range(6)]
    found = []
    for device in ("cuda", "cpu"):
        made = tiny.engine("llama", device=device)
        found.append(await asyncio.gather(*(made.read(reading) for reading in readings)))
        made.close()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=2e-3, rtol=1e-3)
