from __future__ import annotations

from pathlib import Path

import pytest

from router.registry.disk.reading import weights_sha256
from router.registry.format.folder import FolderError
from tests.registry.cards import weights_of
from tests.registry.life import drop


def test_weights_are_those_that_a_load_would_read(tmp_path: Path) -> None:
    folder = drop(tmp_path, "m")
    assert weights_sha256(folder) == weights_of(folder)
    inner = drop(tmp_path / "nested", "default", value=2)  # as PEFT saves an adapter of another name
    assert weights_sha256(tmp_path / "nested") == weights_of(inner)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FolderError):
        weights_sha256(folder)
