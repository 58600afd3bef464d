"""Hub ids: the local hub cache first, safetensors only, errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from router.errors import ConfigError
from router.models import resolve_model
from router.models.base import fetch_from_hub


class FakeHub:
    """Answers snapshot_download from a local cache and a remote, each a folder or None."""

    def __init__(self, local: Path | None, remote: Path | None) -> None:
        self.local, self.remote = local, remote
        self.asked: list[bool] = []
        self.patterns: set[str] = set()

    def __call__(
        self, repo_id: str, allow_patterns: list[str], local_files_only: bool = False, **_: Any
    ) -> str:
        self.asked.append(local_files_only)
        self.patterns |= set(allow_patterns)
        found = self.local if local_files_only else self.remote
        if found is None:
            raise LocalEntryNotFoundError("out of reach")
        return str(found)


def hub(monkeypatch: pytest.MonkeyPatch, local: Path | None, remote: Path | None) -> FakeHub:
    fake = FakeHub(local, remote)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    return folder


def test_a_cached_model_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    fake = hub(monkeypatch, whole, None)
    assert resolve_model("owner/name") == whole
    assert fake.asked == [True]


def test_a_cached_config_alone_is_not_a_model(
    monkeypatch: pytest.MonkeyPatch, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    fake = hub(monkeypatch, tmp_path, whole)
    assert fetch_from_hub("owner/name") == whole
    assert fake.asked == [True, False]


def test_neither_pickles_nor_code_are_fetched(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    patterns = hub(monkeypatch, None, whole)
    fetch_from_hub("owner/name")
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in patterns.patterns)


def test_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, None, None)
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE.*folder") as raised:
        resolve_model("owner/name")
    assert "out of reach" not in str(raised.value)


def test_a_malformed_id_is_a_setting_to_correct() -> None:
    with pytest.raises(ConfigError, match="not a valid hub id"):
        resolve_model("owner/na me")
