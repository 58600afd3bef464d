"""The contract of engines over vLLM itself. Runs in an environment that has it: see test_real.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from router.config import Settings
from router.engine.base import AdapterArtifact, Engine
from router.engine.vllm.engine import VllmEngine
from router.engine.vllm.link import connect
from router.registry.format.artifact import read_artifact
from tests.engine import tiny
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract

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

    def __init__(self) -> None:
        self.engine: VllmEngine | None = None

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    """Closed behind the last test."""
    shared = Started()
    yield shared
    shared.close()


class TestVllmEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _places(self, tmp_path_factory: pytest.TempPathFactory, folder: Path) -> None:
        self.folders, self.base = tmp_path_factory, folder

    @pytest.fixture
    async def engine(self, started: Started) -> Engine:  # type: ignore[override]
        if started.engine is None:
            started.engine = self.make()
            await asyncio.to_thread(started.engine.start)
        return started.engine

    def make(self) -> VllmEngine:
        settings = Settings(
            engine="vllm",
            model=str(self.base),
            dtype="float32",
            cache_tokens=2048,
            max_context=CONTEXT,
            max_running=ROWS,
            max_queue=QUEUE,
            slots=4,
            max_rank=16,
        )
        return VllmEngine(settings, connect)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        folder = self.folders.mktemp(name)
        tiny.save_adapter(KIND, folder, seed=len(name))
        return replace(read_artifact(folder, engine.info, max_rank=64)[0], invocation_tokens=invocation)
