"""A hub with one adapter, and an adapters folder to add it to."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.registry.format.artifact import FolderRules, Inspection, validate_folder
from router.sources.adding import Added, AddRequest, NameOverride, add
from tests.cli.tiny import write_adapter
from tests.sources.fake_hub import REPO, FakeHub, fake_hub
from tests.sources.sources import source_of

MANIFEST = b'[adapter]\nname = "contracts"\nversion = "1.0.0"\n'


@pytest.fixture(scope="session")
def adapter_files(tmp_path_factory):
    """An adapter as PEFT saves it, by file name."""
    folder = write_adapter(tmp_path_factory.mktemp("saved") / "some-lora")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def _server():
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def hub(_server, adapter_files, monkeypatch):
    """A hub that is honest until a test makes it lie."""
    fresh = FakeHub(files=dict(adapter_files), url=_server.url)
    _server.__dict__.update(fresh.__dict__)
    monkeypatch.setenv("HF_ENDPOINT", _server.url)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return _server


@pytest.fixture
def adapters(tmp_path):
    return tmp_path / "adapters"


@pytest.fixture
def added(adapters):
    """Add a source to the adapters folder."""

    def run(
        said: str = f"hub:{REPO}@v1.0", subfolder: str = "", name: str = "", version: str = "", **wish
    ) -> Added:
        source = source_of(str(said), subfolder)
        options = {"most_bytes": 1 << 20, "wanted": NameOverride(name, version), **wish}
        return add(AddRequest(source, adapters, **options), validate, lambda *_: None)

    return run


def validate(folder: Path) -> Inspection:
    return validate_folder(folder, FolderRules(None))


def in_view(adapters: Path) -> list[str]:
    """What a server would see."""
    found = [p for p in adapters.rglob("*") if p.is_file()] if adapters.is_dir() else []
    paths = (path.relative_to(adapters) for path in found)
    return sorted(str(p) for p in paths if not any(part.startswith(".") for part in p.parts))


def staged(adapters: Path) -> list[Path]:
    """What is left of attempts."""
    return list(adapters.glob(".add-*"))
