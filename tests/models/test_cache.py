"""Model folders appear whole or not at all, are built once, and are checked before they are used."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError, DataLoss
from router.models import cache
from router.models.cache import SUMS, build_once, models_dir, problem_of, sums_of, text_of

Build = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def weights(values: bytes) -> bytes:
    """A safetensors file with one tensor of bytes."""
    entry = {"dtype": "BF16", "shape": [len(values) // 2], "data_offsets": [0, len(values)]}
    header = json.dumps({"embed.weight": entry}).encode()
    return len(header).to_bytes(8, "little") + header + values


FILES = {"config.json": b"{}", "sub/more.json": b"[1]", "model.safetensors": weights(b"\1\2\3\4")}


def build(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def never(folder: Path) -> None:
    raise AssertionError(folder)


def test_the_record_is_one_that_sha256sum_checks():
    folder = build_once("m-1", build)
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=False)
    assert done.returncode == 0
    names = [line.split("  ")[1] for line in (folder / SUMS).read_text().splitlines()]
    assert names == ["config.json", "model.safetensors", "sub/more.json"]


@given(st.sampled_from(sorted(FILES)), st.integers(min_value=0), st.integers(1, 255))
def test_a_change_of_any_byte_is_found(name, at, by):
    folder = models_dir() / "any"
    shutil.rmtree(folder, ignore_errors=True)
    build_once("any", build)
    data = bytearray(FILES[name])
    data[at % len(data)] = (data[at % len(data)] + by) % 256
    (folder / name).write_bytes(data)
    problem = problem_of(folder)
    assert f"{name} has sha256 {hashlib.sha256(data).hexdigest()}" in problem


def remove(folder: Path) -> None:
    (folder / "sub/more.json").unlink()


def add(folder: Path) -> None:
    (folder / "model-2.safetensors").write_bytes(weights(b"\0\0"))


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(FILES["model.safetensors"][:-1])


def tear_the_record(folder: Path) -> None:
    (folder / SUMS).write_bytes(b"\xff\0 torn")


DAMAGES = [
    (remove, r"sub/more\.json is missing"),
    (add, r"model-2\.safetensors is not in SHA256SUMS"),
    (cut, r"model\.safetensors has sha256 \w{64}, recorded is \w{64}"),
    (tear_the_record, r"config\.json is not in SHA256SUMS"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_folder_is_made_anew_with_a_warning(damage, message, capfd):
    folder = build_once("m-1", build)
    damage(folder)
    assert build_once("m-1", build) == folder
    assert sums_of(folder) == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert problem_of(folder) == ""
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(rf"^warning: .*{message}; making it anew$", line)
    assert sorted(path.name for path in models_dir().iterdir()) == [".m-1.lock", "m-1"]


def out_of_reach(folder: Path) -> None:
    raise ConfigError("pip could not download it: check the network")


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_folder_that_cannot_be_made_anew_is_an_error_and_stays(damage, message):
    folder = build_once("m-1", build)
    damage(folder)
    damaged = sums_of(folder)
    with pytest.raises(DataLoss, match=rf"{message}\. It could not be made anew: pip .* check the network"):
        build_once("m-1", out_of_reach)
    assert sums_of(folder) == damaged


def test_a_damaged_folder_in_a_cache_that_cannot_be_written_is_named(monkeypatch):
    folder = build_once("m-1", build)
    cut(folder)

    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(cache, "_locked", refuse)
    with pytest.raises(DataLoss, match=r"recorded is \w{64}\. It could not be made anew: .*Read-only"):
        build_once("m-1", build)


def test_a_folder_without_a_record_is_made_anew(capfd):
    folder = build_once("m-1", build)
    (folder / SUMS).unlink()
    build_once("m-1", build)
    assert (folder / SUMS).read_text() == text_of(sums_of(folder))
    assert "config.json is not in SHA256SUMS; making it anew" in capfd.readouterr().err


# -- A process reads a folder once, and again when a file looks different.


def test_a_checked_folder_is_read_once(monkeypatch):
    folder = build_once("m-1", build)
    assert build_once("m-1", never) == folder
    monkeypatch.setattr(cache, "sums_of", never)
    assert build_once("m-1", never) == folder


def test_a_folder_that_looks_different_is_read_again():
    folder = build_once("m-1", build)
    assert build_once("m-1", never) == folder
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(AssertionError):
        build_once("m-1", never)


# -- Built once, whole or not at all.


def _slow_build(folder: Path) -> None:
    with (models_dir() / "builds").open("a") as log:
        log.write(f"{os.getpid()}\n")
    (folder / "first").write_text("1")
    time.sleep(0.3)
    (folder / "second").write_text("2")


def _start() -> None:
    folder = build_once("m-1", _slow_build)
    assert sorted(path.name for path in folder.iterdir()) == [SUMS, "first", "second"]


def _of_three_starters_one_builds() -> None:
    context = multiprocessing.get_context("spawn")
    starters = [context.Process(target=_start) for _ in range(3)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(30)
    assert [starter.exitcode for starter in starters] == [0, 0, 0]
    assert len((models_dir() / "builds").read_text().split()) == 1


@pytest.mark.slow
def test_of_several_starters_one_builds():
    _of_three_starters_one_builds()


@pytest.mark.slow
def test_of_several_starters_one_makes_a_damaged_folder_anew():
    folder = models_dir() / "m-1"
    folder.mkdir(parents=True)
    (folder / "first").write_text("0")
    (folder / SUMS).write_text("")
    _of_three_starters_one_builds()


def test_a_failed_build_leaves_nothing_and_the_next_one_works():
    def fails(path: Path) -> None:
        (path / "half").write_text("1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once("m-1", fails)
    assert [path.name for path in models_dir().iterdir()] == [".m-1.lock"]
    assert [path.name for path in build_once("m-1", lambda path: None).iterdir()] == [SUMS]


def test_leftovers_of_a_killed_builder_are_removed():
    leftover = models_dir() / ".m-1.99999.partial"
    leftover.mkdir(parents=True)
    other = models_dir() / ".m-2.99999.partial"
    other.mkdir()
    build_once("m-1", lambda path: None)
    assert not leftover.exists()
    assert other.exists()
