"""What is loaded without being asked for, and in which order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router.errors import (
    AdapterNotFound,
)
from router.registry import planner
from tests.registry.conftest import StartRegistry
from tests.registry.life import (
    SIZE,
    StubEngine,
    drop,
    eventually,
    is_ready,
    ref,
    states,
)

pytestmark = pytest.mark.slow


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


async def test_of_a_mass_of_folders_some_are_preloaded_and_the_others_when_they_are_asked_for(
    root: Path, engine: StubEngine, start_registry: StartRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MOST_WAITING", 5)
    for i in range(20):
        drop(root, f"m{i:02}", value=i + 1)
    engine.loading.clear()
    registry = await start_registry(settle=0.0)
    await eventually(lambda: len(engine.loads) == 2)
    engine.loading.set()
    assert await registry.settled(5)
    ready = [name for name, state in states(registry).items() if state == "ready"]
    assert ready == [f"m{i:02}@0" for i in range(len(ready))]  # the first ones by name
    assert 5 < len(ready) < 12
    async with registry.lease(ref("m19")):
        assert states(registry)["m19@0"] == "ready"
    drop(root, "late", value=99)
    await eventually(is_ready(registry, "late"))


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


async def test_the_default_follows_a_new_version_once_it_is_proven(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m", "1.0", 1, folder="m/1.0")
    registry = await start_registry(preload=False)
    engine.answering.clear()
    drop(root, "m", "1.1", 2, folder="m/1.1", expect="I am")
    await eventually(lambda: len(engine.jobs) == 2)
    assert (registry.resolve("m").ref.version, states(registry)["m@1.1"]) == ("1.0", "loading")
    engine.answering.set()
    await eventually(lambda: registry.resolve("m").ref.version == "1.1")
    drop(root, "m", "1.2", 3, folder="m/1.2", expect="nobody")
    await eventually(lambda: states(registry).get("m@1.2") == "quarantined")
    drop(root, "m", "0.9", 4, folder="m/0.9")
    await eventually(lambda: "m@0.9" in states(registry))
    assert registry.resolve("m").ref.version == "1.1"


async def test_a_folder_that_becomes_another_version_serves_the_old_until_then(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m", "1.0", 1, expect="I am")
    registry = await start_registry()
    drop(root, "m", "1.1", 2, expect="nobody")
    await eventually(lambda: states(registry) == {"m@1.0": "ready", "m@1.1": "quarantined"})
    assert registry.resolve("m").ref.version == "1.0"
    assert "1.1" in registry.get("m").error
    drop(root, "m", "1.2", 3, expect="I am")
    await eventually(lambda: states(registry) == {"m@1.2": "ready"})
    await eventually(lambda: len(engine.held) == 1)
    with pytest.raises(AdapterNotFound, match=r"its versions: 1\.2"):
        registry.get("m", "1.0")


async def test_preloads_that_begin_together_fit_together(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "a", value=1)
    drop(root, "b", value=2)
    registry = await start_registry(host_memory_bytes=SIZE * 3 // 2)
    assert sorted(states(registry).values()) == ["discovered", "ready"]
    assert (len(engine.loads), engine.unloads, [i.error for i in registry.list()]) == (1, [], ["", ""])
