"""Start-up with many folders: names first, checks after, and no request waits behind them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router.registry.disk import reconcile
from tests.registry.conftest import StartRegistry
from tests.registry.life import StubEngine, drop, eventually, is_ready, ref, states


async def test_many_folders_are_known_by_name_before_they_are_checked(
    root: Path, engine: StubEngine, start_registry: StartRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "BATCH", 4)
    for i in range(20):
        drop(root, f"m{i}", "1.0", i + 1)
    (root / "m7/adapter_model.safetensors").write_bytes(b"short")
    (root / "m8/adapter.toml").write_text("[adapter")
    registry = await start_registry(preload=False)
    assert len(states(registry)) == 19
    assert not all(i.rank for i in registry.list())
    async with registry.lease(ref("m3", "1.0")):
        assert registry.get("m3").rank == 4
    drop(root, "late", value=99)
    await eventually(lambda: "late@0" in states(registry))
    await eventually(lambda: all(i.rank for i in registry.list() if i.state != "quarantined"))
    refused = sorted(n for n, state in states(registry).items() if state == "quarantined")
    assert refused == ["m7@1.0", "m8@0"]


async def test_new_folders_go_before_a_backlog_of_preloads(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    for i in range(20):
        drop(root, f"m{i}", value=i + 1)
    engine.loading.clear()
    registry = await start_registry(settle=0.0)
    await eventually(lambda: len(engine.loads) == 2)
    drop(root, "late", value=99)
    await eventually(lambda: "late@0" in states(registry))
    engine.loading.set()
    await eventually(is_ready(registry, "late"))
    await registry.settled(5)
    assert engine.loads.index("late") < 10  # two were under way, a few may overtake its read


async def test_settled_gives_up_in_time(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    engine.loading.clear()
    registry = await start_registry(settle=0.05)
    assert not await registry.settled(0.05)
    engine.loading.set()
    assert await registry.settled(5)


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


async def test_closing_among_loads_begins_no_other_and_refuses_nobody(
    root: Path, engine: StubEngine, start_registry: StartRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(8):
        drop(root, f"m{i}", value=i + 1)
    engine.loading.clear()
    registry = await start_registry(settle=0.0)
    await eventually(lambda: len(engine.loads) == 2)
    await registry.close()
    await asyncio.sleep(0.1)
    assert len(engine.loads) == 2
    assert "quarantined" not in states(registry).values()
    assert [entry.message for entry in caplog.records if entry.levelname in ("WARNING", "ERROR")] == []
