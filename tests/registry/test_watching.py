from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import watchfiles

from router.registry.watching import Watcher
from tests.registry.life import eventually


async def test_changes_of_every_kind_are_told_on_the_loop(tmp_path: Path) -> None:
    told: set[Path] = set()
    loops: set[asyncio.AbstractEventLoop] = set()

    def changed(paths: frozenset[Path]) -> None:
        told.update(paths)
        loops.add(asyncio.get_running_loop())

    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    watcher = Watcher([tmp_path / "link", tmp_path / "missing"], changed)
    watcher.start()
    await asyncio.sleep(0.2)
    (tmp_path / "old/file").write_text("x")
    await eventually(lambda: tmp_path / "old/file" in told)
    told.clear()
    (tmp_path / "old/file").open("r+").close()
    with (tmp_path / "old/file").open("r+") as file:
        file.write("y")
    await eventually(lambda: tmp_path / "old/file" in told)
    (tmp_path / "new").mkdir()
    await asyncio.sleep(0.3)
    (tmp_path / "new/file").write_text("x")
    await eventually(lambda: tmp_path / "new/file" in told)
    assert (loops, watcher.working) == ({asyncio.get_running_loop()}, True)
    await watcher.close()


async def test_reading_is_no_change(tmp_path: Path) -> None:
    told: list[frozenset[Path]] = []
    (tmp_path / "file").write_text("x")
    watcher = Watcher([tmp_path], told.append)
    watcher.start()
    await asyncio.sleep(0.3)
    told.clear()
    assert (tmp_path / "file").read_text() == "x"
    assert os.listdir(tmp_path)
    await asyncio.sleep(0.3)
    assert told == []
    await watcher.close()


async def test_without_folders_there_is_no_thread(tmp_path: Path) -> None:
    watcher = Watcher([tmp_path / "missing"], lambda paths: None)
    watcher.start()
    assert not watcher.working
    await watcher.close()


async def test_a_failure_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(watchfiles, "watch", full)
    watcher = Watcher([tmp_path], lambda paths: None)
    watcher.start()
    await eventually(lambda: not watcher.working)
    assert "compared regularly instead" in caplog.text
    await watcher.close()
