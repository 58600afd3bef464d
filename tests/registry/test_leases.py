"""Leases: one load for all who wait, nothing lost by anyone who gives up, unload after the last."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from router.engine.base import AdapterArtifact
from router.errors import AdapterRejected, DeadlineExceeded, Draining
from router.ports import AdapterRegistry
from router.registry.disk.reading import FolderReader
from router.registry.format.artifact import Inspection
from router.registry.registry import Registry
from tests.registry.conftest import StartRegistry
from tests.registry.life import StubEngine, drop, eventually, host_bytes, leases, ref, states

pytestmark = pytest.mark.slow


async def hold(registry: Registry, name: str, until: asyncio.Event | None = None) -> str:
    async with registry.lease(ref(name)) as lease:
        if until is not None:
            await until.wait()
        return lease.digest


async def test_the_port_is_implemented(start_registry: StartRegistry) -> None:
    registry: AdapterRegistry = await start_registry()
    assert registry.list() == ()
    assert registry.leases() == 0


async def test_many_leases_of_a_cold_version_share_one_load(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.loading.clear()
    holders = [asyncio.create_task(hold(registry, "m")) for _ in range(20)]
    await eventually(lambda: len(engine.loads) == 1)
    assert states(registry) == {"m@0": "loading"}
    engine.loading.set()
    assert len(set(await asyncio.gather(*holders))) == 1
    assert engine.loads == ["m"]


async def test_a_failed_load_is_told_to_all_and_nothing_is_left(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.faults["m"] = AdapterRejected("site q_proj does not fit")
    engine.loading.clear()
    holders = [asyncio.create_task(hold(registry, "m")) for _ in range(5)]
    await asyncio.sleep(0)
    engine.loading.set()
    results = await asyncio.gather(*holders, return_exceptions=True)
    assert [str(r) for r in results] == ["site q_proj does not fit"] * 5
    assert (states(registry), host_bytes(registry)) == ({"m@0": "quarantined"}, 0)


async def test_a_bug_in_a_load_is_quarantined_without_its_text(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    engine.faults["m"] = RuntimeError("secret detail")
    registry = await start_registry()
    assert states(registry) == {"m@0": "quarantined"}
    assert "secret" not in registry.get("m").error


async def test_giving_up_does_not_stop_the_load_for_others(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.loading.clear()
    first, second = (asyncio.create_task(hold(registry, "m")) for _ in range(2))
    await eventually(lambda: len(engine.loads) == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(DeadlineExceeded, match="within the deadline"):
        async with registry.lease(ref("m"), deadline=time.monotonic() + 0.05):
            pytest.fail("leased")
    engine.loading.set()
    assert await second in engine.held
    assert registry.get("m").leases == leases(registry) == 0
    assert all(r.leases == 0 for r in registry._residency)


async def test_a_slow_load_holds_up_nobody_else(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    for name in ("warm", "slow", "cold"):
        drop(root, name, value=len(name) + ord(name[0]))
    registry = await start_registry(preload=False)
    await registry.load(ref("warm"))
    load = engine.load

    async def slow(artifact: object) -> int:
        if artifact.name == "slow":  # type: ignore[attr-defined]
            await asyncio.sleep(30)
        return await load(artifact)  # type: ignore[arg-type]

    engine.load = slow  # type: ignore[method-assign,assignment]
    waiting = asyncio.create_task(hold(registry, "slow"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await hold(registry, "warm")
        await hold(registry, "cold")
    waiting.cancel()


async def test_unload_waits_for_the_last_lease_and_tells_the_bytes(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    registry = await start_registry(room_seconds=5)
    size, release = host_bytes(registry), asyncio.Event()
    holder = asyncio.create_task(hold(registry, "m", release))
    await asyncio.sleep(0)
    unloads = [asyncio.create_task(registry.unload(ref("m"))) for _ in range(2)]
    gives_up = asyncio.create_task(registry.unload(ref("m")))
    await asyncio.sleep(0.02)
    gives_up.cancel()
    late = asyncio.create_task(hold(registry, "m"))
    await asyncio.sleep(0.02)
    assert (engine.unloads, late.done(), states(registry)) == ([], False, {"m@0": "offloaded"})
    release.set()
    assert [freed for _, freed in await asyncio.gather(*unloads)] == [size, size]
    assert engine.unloads == ["m"]
    assert await late == await holder
    assert states(registry) == {"m@0": "ready"}
    assert await registry.unload(ref("m")) == (registry.get("m"), size)
    assert await registry.unload(ref("m")) == (registry.get("m"), 0)


async def test_a_request_that_needs_a_second_lease_during_an_unload_is_not_stuck(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    registry = await start_registry(room_seconds=0.1)
    async with registry.lease(ref("m")) as outer:
        unloading = asyncio.create_task(registry.unload(ref("m")))
        await asyncio.sleep(0.02)
        async with registry.lease(ref("m")) as inner:
            assert inner.digest == outer.digest
    _, freed = await unloading
    assert freed > 0
    assert not engine.held


@pytest.mark.parametrize("ends_in_time", [True, False])
async def test_a_load_during_an_unload_waits_for_its_end_or_takes_it_back(
    root: Path, engine: StubEngine, start_registry: StartRegistry, ends_in_time: bool
) -> None:
    drop(root, "m")
    registry = await start_registry(room_seconds=0.2)
    release = asyncio.Event()
    holder = asyncio.create_task(hold(registry, "m", release))
    await asyncio.sleep(0)
    unloading = asyncio.create_task(registry.unload(ref("m")))
    await asyncio.sleep(0)
    loading = asyncio.create_task(registry.load(ref("m")))
    if ends_in_time:
        await asyncio.sleep(0.05)
        release.set()
    assert (await loading).state == "ready"
    _, freed = await unloading
    assert (freed > 0, len(engine.loads)) == ((True, 2) if ends_in_time else (False, 1))
    release.set()
    await holder
    assert states(registry) == {"m@0": "ready"}


async def test_unload_of_one_of_two_versions_with_the_same_bytes_frees_nothing(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "a")
    drop(root, "b")
    registry = await start_registry()
    assert (await registry.unload(ref("a")))[1] == 0
    async with registry.lease(ref("b")) as lease:
        assert lease.digest in engine.held
    assert (await registry.unload(ref("b")))[1] > 0


async def test_unload_while_it_loads_waits_for_the_load(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.loading.clear()
    loading = asyncio.create_task(registry.load(ref("m"), pinned=True))
    await eventually(lambda: len(engine.loads) == 1)
    unloading = asyncio.create_task(registry.unload(ref("m")))
    await asyncio.sleep(0.02)
    engine.loading.set()
    assert (await loading).pinned
    info, freed = await unloading
    assert (info.state, info.pinned, freed > 0, engine.held) == ("offloaded", False, True, {})


class Remembering(FolderReader):
    """Reads each folder once: this is about leases."""

    def __init__(self, engine: StubEngine) -> None:
        super().__init__(engine, 64)
        self.known = dict[Path, tuple[AdapterArtifact, Inspection]]()

    def read(self, folder: Path) -> tuple[AdapterArtifact, Inspection]:
        if folder not in self.known:
            self.known[folder] = super().read(folder)
        return self.known[folder]


async def test_five_hundred_unloads_under_leases(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    for name in ("a", "b"):
        drop(root, name, value=ord(name))
    registry = await start_registry(reader=Remembering(engine))
    rounds = 0

    async def work(name: str) -> None:
        while rounds < 500:
            async with registry.lease(ref(name)) as lease:
                assert lease.digest in engine.held
                await asyncio.sleep(0)
                assert lease.digest in engine.held

    workers = [asyncio.create_task(work(name)) for name in "aabb"]
    while rounds < 500:
        await asyncio.gather(registry.unload(ref("a")), registry.unload(ref("b")))
        rounds += 1
    await asyncio.gather(*workers)
    await registry.unload(ref("a"))
    await registry.unload(ref("b"))
    assert (engine.held, leases(registry), host_bytes(registry), len(registry._residency)) == ({}, 0, 0, 0)
    assert len(engine.unloads) > 500


async def test_closing_ends_who_waits(root: Path, engine: StubEngine, start_registry: StartRegistry) -> None:
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.loading.clear()
    waiting = asyncio.create_task(hold(registry, "m"))
    await eventually(lambda: len(engine.loads) == 1)
    await registry.close()
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await hold(registry, "m")
