from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import pytest
import watchfiles

from router.registry.watching import FolderWatcher, LookLoop
from tests.registry.life import drop, eventually, is_ready, ref, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def unwatched(monkeypatch):
    """The kernel reports no changes."""

    def full(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(watchfiles, "watch", full)


async def test_changes_of_every_kind_are_told_on_the_loop(tmp_path):
    told: set[Path] = set()
    loops: set[asyncio.AbstractEventLoop] = set()

    def changed(paths: frozenset[Path]) -> None:
        told.update(paths)
        loops.add(asyncio.get_running_loop())

    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    watcher = FolderWatcher([tmp_path / "link", tmp_path / "missing"], changed)
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


async def test_what_is_still_being_copied_is_not_told(tmp_path):
    told: set[Path] = set()
    watcher = FolderWatcher([tmp_path], told.update)
    watcher.start()
    await asyncio.sleep(0.2)
    for part in (".m", "m.part"):
        (tmp_path / part).mkdir()
        await asyncio.sleep(0.1)
        (tmp_path / part / "file").write_text("x")
    await asyncio.sleep(0.5)
    assert told == set()
    (tmp_path / ".m").rename(tmp_path / "m")
    await eventually(lambda: tmp_path / "m" in told)
    (tmp_path / "m/.file").write_text("x")  # below, hidden names are files of an adapter's folder
    await eventually(lambda: tmp_path / "m/.file" in told)
    await watcher.close()


async def test_reading_is_no_change(tmp_path):
    told: list[frozenset[Path]] = []
    (tmp_path / "file").write_text("x")
    watcher = FolderWatcher([tmp_path], told.append)
    watcher.start()
    await asyncio.sleep(0.3)
    told.clear()
    assert (tmp_path / "file").read_text() == "x"
    assert os.listdir(tmp_path)
    await asyncio.sleep(0.3)
    assert told == []
    await watcher.close()


async def test_without_folders_there_is_no_thread(tmp_path):
    watcher = FolderWatcher([tmp_path / "missing"], lambda paths: None)
    watcher.start()
    assert not watcher.working
    await watcher.close()


async def test_a_failure_is_said_once(tmp_path, unwatched, caplog):
    watcher = FolderWatcher([tmp_path], lambda paths: None)
    watcher.start()
    await eventually(lambda: not watcher.working)
    assert "compared regularly instead" in caplog.text
    await watcher.close()


class Looks:
    """Stands for a reconciler over so many folders that to look at each file takes ten seconds."""

    def __init__(self) -> None:
        self.every_file, self.dirty = list[bool](), list[set[Path]]()
        self.scan_seconds, self.behind = 0.0, False
        self.fault: Exception | None = None

    async def look(self, dirty: Collection[Path], every_file: bool) -> bool:
        self.every_file.append(every_file)
        self.dirty.append(set(dirty))
        self.scan_seconds = 10.0 if every_file else 0.0
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return False


async def looking(folder: Path, looks: Looks) -> LookLoop:
    loop = LookLoop([folder], cast(Any, looks), lambda: None, poll=0.02, settle=0.04)
    await loop.start()
    return loop


async def test_the_longer_a_look_takes_the_rarer_it_is_made(tmp_path, unwatched):
    looks = Looks()
    loop = await looking(tmp_path, looks)
    await eventually(lambda: len(looks.every_file) > 4)
    await loop.close()
    assert looks.every_file[0]
    assert looks.every_file.count(True) == 1  # 10 s are a twentieth of 200 s


async def test_what_the_kernel_tells_of_is_looked_into_and_nothing_else_but_at_intervals(
    tmp_path, monkeypatch
):
    looks = Looks()
    loop = await looking(tmp_path, looks)
    await eventually(lambda: len(looks.every_file) > 1)
    await asyncio.sleep(0.3)
    before = len(looks.every_file)
    (tmp_path / "m").mkdir()
    await eventually(lambda: {tmp_path / "m"} in looks.dirty)
    loop.look_soon(tmp_path / "n")
    await eventually(lambda: {tmp_path / "n"} in looks.dirty)
    assert not any(looks.every_file[before:])
    looks.fault = RuntimeError("bug")
    loop.look_soon(tmp_path / "o")
    await eventually(lambda: looks.dirty.count({tmp_path / "o"}) == 2)  # what was heard of is not lost
    await loop.close()


async def test_an_idle_registry_does_nothing_but_look(root, engine, start_registry):
    drop(root, "m")
    registry = await start_registry(poll_seconds=0.05)
    events = registry.watch()
    await anext(events)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.5)
    assert (engine.loads, waiting.done()) == (["m"], False)
    await registry.load(ref("m"), pinned=True)
    event = await asyncio.wait_for(waiting, 2)
    assert (event.kind, event.adapter.pinned) == ("changed", True)
    await events.aclose()


async def test_without_notifications_folders_are_compared(root, start_registry, unwatched, caplog):
    registry = await start_registry()
    folder = drop(root, "m")
    await eventually(is_ready(registry, "m"))
    before = registry.get("m").digest
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.write(weights(2))
    await eventually(lambda: registry.get("m").digest != before)
    assert caplog.text.count("OS file watch limit reached") == 1


async def test_what_another_host_does_on_a_shared_file_system_is_seen_without_being_told(
    root, start_registry, monkeypatch
):
    monkeypatch.setattr(
        FolderWatcher, "_report", lambda *_: None
    )  # as NFS: it can be watched, and no event arrives
    registry = await start_registry()
    folder = drop(root, "m")
    await eventually(is_ready(registry, "m"))
    before = registry.get("m").digest
    new = folder / ".new"
    new.write_bytes(weights(2))
    new.rename(folder / "adapter_model.safetensors")
    await eventually(lambda: registry.get("m").digest != before)
    shutil.rmtree(folder)
    await eventually(lambda: registry.count() == 0)


async def test_a_look_that_fails_is_not_the_last(root, start_registry, monkeypatch, caplog):
    registry = await start_registry()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(registry._reconciler._scanner, "scan", broken)
        await eventually(lambda: "looking at adapter folders failed" in caplog.text)
        assert registry.flaws == ["adapter folders cannot be looked at: RuntimeError: bug"]
        registry._look_loop.look_soon(root / "m")
        await eventually(lambda: not registry._look_loop._wake.is_set())
        assert caplog.text.count("looking at adapter folders failed") == 1
    drop(root, "m")
    await eventually(is_ready(registry, "m"))
    assert registry.flaws == []
