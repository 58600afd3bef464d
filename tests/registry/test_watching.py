from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import watchfiles

from router.registry.folders import Scan, Scanner
from router.registry.state import PendingWork
from router.registry.watching import FolderWatcher
from tests.registry.life import drop, eventually, is_ready, ref, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def unwatched(monkeypatch):
    """The kernel reports no changes."""

    def full(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(watchfiles, "watch", full)


@pytest.fixture
async def watched(tmp_path):
    """Starts to watch folders; gives the paths that are told."""
    async with AsyncExitStack() as stack:

        async def watch(*dirs: Path) -> set[Path]:
            pending = PendingWork()
            watcher = FolderWatcher(dirs or [tmp_path], pending)
            stack.push_async_callback(watcher.close)
            watcher.start()
            await asyncio.sleep(0.2)
            return pending.dirty

        yield watch


async def test_changes_of_every_kind_are_told(tmp_path, watched):
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    told = await watched(tmp_path / "link", tmp_path / "missing")
    (tmp_path / "old/file").write_text("x")
    await eventually(lambda: tmp_path / "old/file" in told)
    told.clear()
    with (tmp_path / "old/file").open("r+") as file:
        file.write("y")
    await eventually(lambda: tmp_path / "old/file" in told)
    (tmp_path / "new").mkdir()
    await asyncio.sleep(0.3)
    (tmp_path / "new/file").write_text("x")
    await eventually(lambda: tmp_path / "new/file" in told)


async def test_what_is_still_being_copied_is_not_told(tmp_path, watched):
    told = await watched()
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


async def test_reading_is_no_change(tmp_path, watched):
    (tmp_path / "file").write_text("x")
    told = await watched()
    told.clear()
    assert (tmp_path / "file").read_text() == "x"
    assert os.listdir(tmp_path)
    await asyncio.sleep(0.3)
    assert told == set()


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
        patch.setattr(Scanner, "scan", broken)
        await eventually(lambda: "looking at adapter folders failed" in caplog.text)
        assert registry.flaws == ["adapter folders cannot be looked at: RuntimeError: bug"]
        drop(root, "m")
        await asyncio.sleep(0.5)
        assert caplog.text.count("looking at adapter folders failed") == 1
    await eventually(is_ready(registry, "m"))
    assert registry.flaws == []


async def test_the_longer_a_scan_takes_the_rarer_every_file_is_compared(
    root, start_registry, unwatched, monkeypatch
):
    every_file, scan = list[bool](), Scanner.scan

    def slow(scanner: Scanner, dirty: Collection[Path], every: bool) -> Scan:
        every_file.append(every)
        time.sleep(0.05)
        return scan(scanner, dirty, every)

    monkeypatch.setattr(Scanner, "scan", slow)
    await start_registry(poll_seconds=0.01)
    await asyncio.sleep(0.5)
    assert every_file.count(True) == 1  # 0.05 s are a twentieth of a second
