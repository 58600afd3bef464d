from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import watchfiles

from router.registry.watching import Watcher
from tests.registry.conftest import StartRegistry
from tests.registry.life import StubEngine, drop, eventually, is_ready, ref, weights

pytestmark = pytest.mark.slow


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


async def test_an_idle_registry_does_nothing_but_look(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
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


async def test_without_notifications_folders_are_compared(
    root: Path,
    start_registry: StartRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(watchfiles, "watch", full)
    registry = await start_registry()
    folder = drop(root, "m")
    await eventually(is_ready(registry, "m"))
    before = registry.get("m").digest
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.write(weights(2))
    await eventually(lambda: registry.get("m").digest != before)
    assert caplog.text.count("OS file watch limit reached") == 1


async def test_a_look_that_fails_is_not_the_last(
    root: Path,
    start_registry: StartRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = await start_registry()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(registry._reconciler._scanner, "scan", broken)
        await eventually(lambda: "looking at adapter folders failed" in caplog.text)
    drop(root, "m")
    await eventually(is_ready(registry, "m"))
