"""More adapters than memory: the least recently used goes, what is leased or pinned stays."""

from __future__ import annotations

import asyncio
import time

import pytest

from router.errors import ResourceExhausted
from router.registry.registry import Registry
from tests.registry.life import SIZE, StubEngine, drop, eventually, host_bytes, leases, ref, states

NAMES = "abcdef"


@pytest.fixture(autouse=True)
def six(root):
    """Six adapters that need SIZE bytes each."""
    for name in NAMES:
        assert 0.9 * SIZE < sum(f.stat().st_size for f in drop(root, name, value=ord(name)).iterdir()) < SIZE


async def use(registry: Registry, *names: str) -> None:
    for name in names:
        async with registry.lease(ref(name)):
            pass


def held(engine: StubEngine) -> str:
    return "".join(sorted(a.name for a in engine.held.values()))


async def test_preload_stops_where_memory_ends(engine, start_registry):
    registry = await start_registry(host_memory_bytes=4 * SIZE)
    assert held(engine) == "abcd"
    assert sorted(states(registry).values()) == ["discovered"] * 2 + ["ready"] * 4
    assert engine.unloads == []


async def test_the_least_recently_used_goes_but_not_leased_or_pinned_ones(engine, start_registry):
    registry = await start_registry(host_memory_bytes=3 * SIZE, preload=False)
    await use(registry, "a", "b", "c", "a")
    await use(registry, "d")
    assert held(engine) == "acd"
    assert states(registry)["b@0"] == "offloaded"
    await registry.load(ref("c"), pinned=True)
    async with registry.lease(ref("a")):
        await use(registry, "d", "e", "f")
        assert held(engine) == "acf"
    assert registry.get("c").pinned
    await registry.load(ref("c"), pinned=False)
    await use(registry, "a", "d", "b")
    assert "c" not in held(engine)
    assert len(engine.unloads) == 5
    assert host_bytes(registry) <= 3 * SIZE


@pytest.mark.slow
async def test_where_nothing_can_go_a_load_waits_and_then_says_why(engine, start_registry):
    registry = await start_registry(host_memory_bytes=SIZE, preload=False, room_seconds=0.2)
    async with registry.lease(ref("a")):
        started = time.monotonic()
        with pytest.raises(ResourceExhausted, match="1 of 1 adapters are in use"):
            await use(registry, "b")
        assert 0.15 < time.monotonic() - started < 2
        assert states(registry)["b@0"] == "discovered"
        waiting = asyncio.create_task(use(registry, "b"))
        await asyncio.sleep(0.05)
    await waiting
    assert held(engine) == "b"
    assert registry.get("b").error == ""


async def test_what_was_loaded_for_a_request_is_not_evicted_before_it_gets_it(engine, start_registry):
    registry = await start_registry(host_memory_bytes=SIZE, preload=False, room_seconds=5)
    await asyncio.gather(*(use(registry, name) for name in NAMES))
    assert sorted(engine.loads) == list(NAMES)


async def test_one_that_never_fits_is_refused_at_once(engine, start_registry):
    registry = await start_registry(host_memory_bytes=SIZE // 2, room_seconds=60)
    with pytest.raises(ResourceExhausted, match="host_memory_mb"):
        await asyncio.wait_for(use(registry, "a"), 1)
    assert host_bytes(registry) == 0


@pytest.mark.slow
async def test_an_engine_with_less_memory_than_the_budget_gets_room_made(engine, start_registry):
    registry = await start_registry(preload=False)
    engine.capacity = 2 * SIZE
    await use(registry, *NAMES)
    assert held(engine) == "ef"
    engine.capacity = 1
    with pytest.raises(ResourceExhausted, match="no memory"):
        await use(registry, "a")
    assert states(registry)["a@0"] == "offloaded"


async def test_many_more_adapters_than_memory_under_concurrent_use(engine, start_registry):
    registry = await start_registry(host_memory_bytes=3 * SIZE, preload=False, room_seconds=5)

    async def worker(shift: int) -> None:
        for i in range(12):
            async with registry.lease(ref(NAMES[(shift + i) % 6])) as lease:
                assert engine.held[lease.digest].name == NAMES[(shift + i) % 6]
                await asyncio.sleep(0.001)
                assert host_bytes(registry) <= 3 * SIZE

    await asyncio.gather(*(worker(shift) for shift in range(3)))
    await eventually(lambda: leases(registry) == 0)
    assert len(engine.held) <= 3


async def test_an_unload_that_raises_is_logged_and_frees_its_place(engine, start_registry, caplog):
    registry = await start_registry(preload=False)
    await use(registry, "a")

    async def broken(_: str) -> int:
        raise RuntimeError("device lost")

    engine.unload = broken  # type: ignore[method-assign]
    assert (await registry.unload(ref("a")))[1] == 0
    assert "could not unload" in caplog.text
    assert host_bytes(registry) == 0
