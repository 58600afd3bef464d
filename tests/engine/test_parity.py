"""Greedy answers equal PEFT alone with that adapter, token for token, whatever the batch around it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from router.engine import torch_engine
from router.engine.base import Job
from router.engine.torch_engine import TorchEngine
from router.types import SamplingParams
from tests.engine import tiny

pytestmark = pytest.mark.slow

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "target_modules": ALL},
    "a2": {"r": 64, "lora_alpha": 16, "target_modules": ALL},
    "rslora": {"r": 16, "use_rslora": True, "target_modules": ALL},
    "patterns": {
        "r": 8,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.down_proj": 12},
        "alpha_pattern": {"v_proj": 40, "model.layers.0.self_attn.o_proj": 3},
    },
    "qv": {"r": 6, "target_modules": ["q_proj", "v_proj"]},
    "one-layer": {"r": 5, "target_modules": ["up_proj"], "layers_to_transform": [1]},
}
NEW = 12
Tuned = dict[str, tuple[Path, Any]]
ENDS = frozenset({tiny.SHAPE["eos_token_id"]})


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randint(1, 60))] for _ in range(count)]


# Every path with one architecture; the others have operations of their own.
PATHS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"path": "packed"}) for kind in ("llama", "llama-bias", "qwen2", "qwen3")),
    *((kind, {"path": "packed", "native": True}) for kind in ("llama", "llama-bias", "qwen2", "qwen3")),
    ("llama", {"path": "generic"}),
    ("qwen3", {"path": "generic"}),
    ("llama", {"path": "packed", "max_step_tokens": 16}),
    ("llama", {"path": "packed", "prefix_cache": False}),
]


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def adapters_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    @cache
    def saved(kind: str) -> Tuned:
        root = tmp_path_factory.mktemp(kind)
        return {
            name: (root / name, tiny.save_adapter(kind, root / name, seed, **config))
            for seed, (name, config) in enumerate(ADAPTERS.items())
        }

    return saved


@pytest.fixture
def tuned(kind: str, adapters_of: Callable[[str], Tuned]) -> Tuned:
    return adapters_of(kind)


@pytest.fixture
def made(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchEngine]:
    settings = dict(request.param)
    if settings.pop("path") == "generic":
        monkeypatch.setattr(torch_engine, "why_not_packed", lambda *_: "the test wants it")
    engine = tiny.engine(kind, **settings)
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("kind", "made"), PATHS, indirect=True, ids=["-".join(map(str, [k, *p.values()])) for k, p in PATHS]
)
async def test_mixed_batch_equals_peft_alone(made: TorchEngine, kind: str, tuned: Any) -> None:
    digests: dict[str, str | None] = {"base": None}
    for name, (folder, _) in tuned.items():
        artifact = tiny.artifact(folder, made)
        await made.load(artifact)
        digests[name] = artifact.digest
    models = {name: model for name, (_, model) in tuned.items()} | {"base": tiny.model(kind)}
    names = [list(digests)[i % len(digests)] for i in range(16)]
    work = list(zip(names, prompts(16), strict=True))
    answers = await asyncio.gather(
        *(tiny.answer(made, tokens, digests[name], max_tokens=NEW) for name, tokens in work),
        churn(made, tuned, digests),
        cancelled_neighbours(made, digests),
    )
    for (name, tokens), result in zip(work, answers, strict=False):
        assert result is not None
        assert result[0] == tiny.greedy(models[name], tokens, result[0], NEW, ENDS), name
    again = await tiny.answer(made, work[1][1], digests[work[1][0]], max_tokens=NEW)
    assert again[0] == answers[1][0]


async def churn(made: TorchEngine, tuned: Any, digests: dict[str, str | None]) -> None:
    """Load and unload another adapter while the batch runs."""
    folder, _ = tuned["qv"]
    artifact = tiny.artifact(folder, made)
    for i in range(5):
        other = type(artifact)("other", str(i), f"other-{i}", artifact.sites)
        await made.load(other)
        await tiny.answer(made, [1, 2, 3], other.digest, max_tokens=2)
        assert await made.unload(other.digest) > 0


async def cancelled_neighbours(made: TorchEngine, digests: dict[str, str | None]) -> None:
    """Rows that leave in the middle."""
    for digest in digests.values():
        stream = made.submit(Job("gone", list(range(20)), SamplingParams(max_tokens=200), digest))
        async for _ in stream:
            break
        stream.cancel()
