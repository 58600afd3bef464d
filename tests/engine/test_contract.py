"""The contract of engines, kept by those of this process."""

from __future__ import annotations

import hashlib
import zlib

import pytest

from router.engine.base import AdapterArtifact, Engine, SiteDelta, TensorData
from router.engine.fake import FakeEngine
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract


class TestFakeEngine(EngineContract):
    def make(self) -> Engine:
        return FakeEngine(step_seconds=0.001, max_running=ROWS, max_queue=QUEUE, context_length=CONTEXT)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        return fake_adapter(name, invocation)


def fake_adapter(name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
    """Weights of 8 bytes."""
    tensor = TensorData("F32", (1, 1), memoryview(b"abcd"))
    digest = hashlib.sha256(name.encode()).hexdigest()
    return AdapterArtifact(name, "1", digest, {"q": SiteDelta(tensor, tensor, 1.0)}, (), invocation)


class TestTorchEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folders = tmp_path_factory

    def make(self) -> Engine:
        from router.config import Settings
        from router.engine.loader import LoadedModel
        from router.engine.torch_engine import TorchEngine
        from tests.engine import tiny

        settings = Settings(
            dtype="float32", device="cpu", cache_tokens=2048, native=False, max_running=ROWS, max_queue=QUEUE
        )
        return TorchEngine(settings, LoadedModel(tiny.model("llama"), tiny.tokenizer(), "llama"))

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        from dataclasses import replace

        from router.registry.format.artifact import FolderRules, read_artifact
        from tests.engine import tiny

        folder = self.folders.mktemp(name)
        tiny.save_adapter("llama", folder, seed=zlib.crc32(name.encode()))
        return replace(read_artifact(folder, FolderRules(engine.info))[0], invocation_tokens=invocation)
