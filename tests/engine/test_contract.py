"""The contract of engines, kept by those of this process."""

from __future__ import annotations

import atexit
import json
import zlib
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from router.engine.base import AdapterArtifact, Engine
from router.engine.fake import FakeEngine
from router.registry.format.artifact import FolderRules, read_artifact
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract
from tests.registry.tiny import lora_tensors, safetensors, write_adapter


class TestFakeEngine(EngineContract):
    def make(self) -> Engine:
        return FakeEngine(step_seconds=0.001, max_running=ROWS, max_queue=QUEUE, context_length=CONTEXT)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        return fake_adapter(name, invocation)


@cache
def fake_adapter(name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
    """Weights of 8 bytes, in a folder of their own."""
    folder = Path(mkdtemp(prefix="fake-adapter-")) / name
    atexit.register(rmtree, folder.parent, ignore_errors=True)
    config = {"r": 1, "lora_alpha": 1, "target_modules": ["q"]}
    config |= {"alora_invocation_tokens": list(invocation)} if invocation else {}
    weights = safetensors(lora_tensors(1, sites={"q": (1, 1)}))
    write_adapter(folder, config, weights, adapter_toml=f'[adapter]\nname = "{name}"\n')
    return read_folder(folder)


def read_folder(folder: Path) -> AdapterArtifact:
    """As a replica reads it, for an engine without a model."""
    return read_artifact(folder, FolderRules(None))[0]


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
        from tests.engine import tiny

        folder = self.folders.mktemp(name)
        tiny.save_adapter("llama", folder, seed=zlib.crc32(name.encode()))
        if invocation:
            config = folder / "adapter_config.json"
            changed = json.loads(config.read_text()) | {"alora_invocation_tokens": list(invocation)}
            config.write_text(json.dumps(changed))
        return read_artifact(folder, FolderRules(engine.info))[0]
