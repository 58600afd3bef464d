"""The contract of engines over vLLM itself. Runs in an environment that has it: see test_real.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from router.config import Settings
from router.engine.base import AdapterArtifact, Engine
from router.extensions.vllm.engine import VllmEngine
from router.extensions.vllm.link import connect
from router.registry.format.artifact import FolderRules, read_artifact
from tests.engine import tiny
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract, answer, job

SLOTS = 2
KIND = "qwen3"  # whose heads are as wide as vLLM's kernels want them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as files."""
    made = tmp_path_factory.mktemp("base")
    tiny.model(KIND).save_pretrained(made)
    tiny.tokenizer().save_pretrained(made)
    return made


class Started:
    """One engine for all tests that do not end it: each start takes half a minute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: VllmEngine | None = None

    async def get(self) -> VllmEngine:
        """The engine, started by who asks first."""
        if self.engine is None:
            self.engine = made(self.folder)
            await asyncio.to_thread(self.engine.start)
        return self.engine


def made(folder: Path) -> VllmEngine:
    """Not started."""
    settings = Settings(
        engine="vllm",
        model=str(folder),
        dtype="float32",
        cache_tokens=2048,
        max_context=CONTEXT,
        max_running=ROWS,
        max_queue=QUEUE,
        slots=SLOTS,
        max_rank=16,
    )
    return VllmEngine(settings, connect)


def adapter(engine: Engine, folder: Path, seed: int) -> AdapterArtifact:
    """Random numbers."""
    tiny.save_adapter(KIND, folder, seed=seed)
    return read_artifact(folder, FolderRules(engine.info))[0]


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[Started]:
    """Closed behind the last test."""
    shared = Started(folder)
    yield shared
    if shared.engine is not None:
        shared.engine.close()


async def test_more_adapters_than_slots_take_turns(
    started: Started, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine = await started.get()
    adapters = [adapter(engine, tmp_path_factory.mktemp("a"), seed) for seed in range(4 * SLOTS)]
    for one in adapters:
        await engine.load(one)
    jobs = [job(engine, adapter=one.digest, max_tokens=6, min_tokens=6) for one in adapters]
    alone = [(await answer(engine, asked))[0] for asked in jobs]
    assert len(set(alone)) > len(alone) // 2
    for _ in range(3):
        found = await asyncio.gather(*(answer(engine, asked) for asked in jobs))
        assert [text for text, _ in found] == alone


class TestVllmEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _places(self, tmp_path_factory: pytest.TempPathFactory, folder: Path) -> None:
        self.folders, self.base = tmp_path_factory, folder

    @pytest.fixture
    async def engine(self, started: Started) -> Engine:  # type: ignore[override]
        return await started.get()

    def make(self) -> VllmEngine:
        return made(self.base)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        found = adapter(engine, self.folders.mktemp(name), len(name))
        return replace(found, invocation_tokens=invocation)
