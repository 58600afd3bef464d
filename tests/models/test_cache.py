"""Model folders appear whole or not at all, and are built once."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from router.models.wheel import build_once, models_dir


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_of_several_starters_one_builds() -> None:
    context = multiprocessing.get_context("spawn")
    starters = [context.Process(target=_start) for _ in range(3)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(30)
    assert [starter.exitcode for starter in starters] == [0, 0, 0]
    assert len((models_dir() / "builds").read_text().split()) == 1


def test_what_is_cached_is_not_built_again() -> None:
    folder = build_once("m-1", lambda path: (path / "a").write_text("1") and None)

    def never(path: Path) -> None:
        raise AssertionError(path)

    assert build_once("m-1", never) == folder == models_dir() / "m-1"


def test_a_failed_build_leaves_nothing_and_the_next_one_works() -> None:
    def fails(path: Path) -> None:
        (path / "half").write_text("1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once("m-1", fails)
    assert [path.name for path in models_dir().iterdir()] == [".m-1.lock"]
    assert list(build_once("m-1", lambda path: None).iterdir()) == []


def test_leftovers_of_a_killed_builder_are_removed() -> None:
    leftover = models_dir() / ".m-1.99999.partial"
    leftover.mkdir(parents=True)
    other = models_dir() / ".m-2.99999.partial"
    other.mkdir()
    build_once("m-1", lambda path: None)
    assert not leftover.exists()
    assert other.exists()
