"""The registry from outside: what is found, listed, leased, loaded, unloaded and set as default."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable

import pytest

from router.errors import AdapterNotFound, AdapterRejected, Draining, StaleEtag
from router.registry.registry import Registry
from router.types import AdapterEvent, AdapterState, Visible
from tests.registry.life import drop, eventually, host_bytes, is_ready, leases, ref, states

pytestmark = pytest.mark.slow


async def test_folders_are_found_defaults_loaded_and_leased(root, engine, start_registry):
    drop(root, "plain")
    drop(root, "medical", "1.0.0", 2, folder="medical/1.0.0", description="old")
    drop(root, "medical", "1.10.0", 3, folder="medical/1.10.0", description="new")
    drop(root, "legal", "2.0", 4, folder="some-folder")
    registry = await start_registry()
    assert states(registry) == {
        "legal@2.0": "ready",
        "medical@1.0.0": "discovered",
        "medical@1.10.0": "ready",
        "plain@0": "ready",
    }
    assert registry.resolve("medical").ref == ref("medical", "1.10.0")
    async with registry.lease(ref("medical", "1.0.0")) as lease:
        info = registry.get("medical", "1.0.0")
        assert (info.state, info.leases, info.default, lease.digest) == ("ready", 1, False, info.digest)
        assert info.last_used == pytest.approx(time.time(), abs=1)
        assert lease.digest in engine.held
    assert registry.get("medical", "1.0.0").leases == 0


async def test_version_folders_need_no_manifest(root, engine, start_registry):
    drop(root, "m", folder="m/1.0")
    drop(root, "m", folder="m/1.1")
    registry = await start_registry()
    assert registry.resolve("m").ref == ref("m", "1.1")
    async with registry.lease(ref("m", "1.0")) as old, registry.lease(ref("m", "1.1")) as new:
        assert old.digest == new.digest  # same bytes: held once
    assert len(engine.held) == 1


async def test_what_is_not_visible_is_not_there_and_named_by_no_hint(root, start_registry):
    drop(root, "medical", "1.0.0")
    drop(root, "legal", "1.0.0")
    registry = await start_registry()
    mine = Visible(("medical",))
    assert registry.resolve("medical", "", mine).ref.name == registry.get("medical", "", mine).ref.name
    for find in (registry.resolve, registry.get):
        texts = []
        for name in ("legal", "legax"):
            with pytest.raises(AdapterNotFound) as missing:
                find(name, "", mine)
            texts.append(missing.value.message.replace(name, "NAME"))
        assert texts == ["adapter 'NAME' not found; known: medical"] * 2
        with pytest.raises(AdapterNotFound, match="no adapter is there yet"):
            find("legal", "", Visible())


async def test_an_installed_adapter_that_copies_the_prompt_is_quarantined_with_the_place(
    root, start_registry
):
    """As one that was installed before such templates were refused."""
    (drop(root, "bomb") / "adapter.toml").write_text(f"[prompt]\ntemplate = '{'{prompt}' * 1_990}'\n")
    registry = await start_registry()
    await eventually(lambda: states(registry) == {"bomb@0": "quarantined"})
    place = r"adapter\.toml \[prompt\] template.*again at character 9"
    with pytest.raises(AdapterRejected, match=place):
        registry.resolve("bomb")


async def test_errors_say_what_to_do(root, start_registry):
    drop(root, "medical", "1.0.0")
    (drop(root, "broken") / "adapter_config.json").write_text("{")
    registry = await start_registry()
    await eventually(lambda: "broken@0" in states(registry))
    with pytest.raises(AdapterNotFound, match=r"'medicla' not found; did you mean 'medical'\?"):
        registry.resolve("medicla")
    with pytest.raises(AdapterNotFound, match=r"'medical@9' not found; its versions: 1\.0\.0"):
        registry.resolve("medical", "9")
    with pytest.raises(AdapterRejected, match=r"broken@0 is quarantined: adapter_config\.json"):
        registry.resolve("broken")
    with pytest.raises(AdapterRejected, match="quarantined"):
        async with registry.lease(ref("broken")):
            pytest.fail("leased")
    assert "adapter_config.json" in registry.get("broken").error
    assert [p.name for p in registry.profiles()] == ["medical"]


async def test_default_can_be_set_rolls_back_and_survives(root, engine, start_registry):
    drop(root, "m", "1.0", 1, folder="m/1.0")
    drop(root, "m", "2.0", 2, folder="m/2.0")
    registry = await start_registry()
    etag = registry.etag(ref("m", "1.0"))
    info, previous = await registry.set_default(ref("m", "1.0"), etag)
    assert (info.default, previous) == (True, ref("m", "2.0"))
    with pytest.raises(StaleEtag):
        await registry.set_default(ref("m", "1.0"), etag)
    assert registry.profiles()[0].version == "1.0"
    await eventually(is_ready(registry, "m", "1.0"))
    drop(root, "m", "3.0", 3, folder="m/3.0")
    await eventually(lambda: "m@3.0" in states(registry))
    assert registry.resolve("m").ref.version == "1.0"
    await registry.close()
    engine.held.clear()
    again = await start_registry()
    assert again.resolve("m").ref.version == "1.0"


async def test_etag_changes_with_changes_not_with_use(root, start_registry):
    drop(root, "m")
    registry = await start_registry()
    before = registry.etag(ref("m"))
    async with registry.lease(ref("m")):
        pass
    assert registry.etag(ref("m")) == before
    await registry.load(ref("m"), pinned=True)
    assert registry.etag(ref("m")) != before


async def test_what_is_pinned_must_stay(root, start_registry):
    drop(root, "m")
    registry = await start_registry()
    digest = (await registry.load(ref("m"))).digest
    assert not registry.keeps(digest)
    await registry.load(ref("m"), pinned=True)
    assert registry.keeps(digest)
    assert not registry.keeps("unknown")


async def test_a_quarantined_version_cannot_be_the_default(root, start_registry):
    drop(root, "m", "1.0", folder="m/1.0")
    (drop(root, "m", "2.0", folder="m/2.0") / "adapter_config.json").write_text("{")
    registry: Registry = await start_registry()
    await eventually(lambda: states(registry).get("m@2.0") == AdapterState.QUARANTINED)
    assert registry.resolve("m").ref.version == "1.0"
    with pytest.raises(AdapterRejected, match="quarantined"):
        await registry.set_default(ref("m", "2.0"))


async def test_watchers_see_a_life(root, start_registry):
    drop(root, "a", value=1)
    registry = await start_registry()
    changed = list[int]()
    registry.subscribe(lambda: changed.append(len(registry.profiles())))
    first, second = registry.watch(), registry.watch()
    seen = [await anext(first), await anext(second)]
    assert {(e.kind, e.adapter.ref.name, e.adapter.state) for e in seen} == {("added", "a", "ready")}
    drop(root, "b", value=2)
    kinds = [(e.kind, e.adapter.state) async for e in until(first, lambda e: e.adapter.state == "ready")]
    assert kinds[0][0] == "added"
    shutil.rmtree(root / "b")
    await eventually(lambda: "b@0" not in states(registry))
    assert [e.kind async for e in until(first, lambda e: e.kind == "removed")][-1] == "removed"
    await registry.load(ref("a"), pinned=True)
    event = await anext(second)  # slow: what happened to b in between is not told any more
    assert (event.kind, event.adapter.ref.name, event.adapter.pinned) == ("changed", "a", True)
    await eventually(lambda: changed[-1] == 1)  # subscribers are called in a later turn of the loop
    assert 2 in changed


async def test_a_list_goes_on_behind_any_version(root, start_registry):
    for version in ("1.9", "1.10", "latest"):
        drop(root, "m", version, folder=f"m-{version}")
    drop(root, "a", value=5)
    drop(root, "z", value=6)
    registry = await start_registry(preload=False)
    everything = [str(i.ref) for i in registry.list()]
    assert everything == ["a@0", "m@latest", "m@1.9", "m@1.10", "z@0"]
    for at, info in enumerate(registry.list()):
        assert [str(i.ref) for i in registry.listed(info.ref)] == everything[at + 1 :]
    assert next(registry.listed(ref("m", "1.9.1"))).ref.version == "1.10"  # one that is not there
    shutil.rmtree(root / "m-1.9")
    await eventually(lambda: len(registry.list()) == 4)
    assert [str(i.ref) for i in registry.listed(ref("m", "1.9"))] == ["m@1.10", "z@0"]


async def test_profiles_stay_the_same_objects_until_they_change(root, start_registry):
    drop(root, "a", value=1, description="first")
    drop(root, "b", value=2)
    registry = await start_registry()
    before = registry.profiles()
    a, b = before
    async with registry.lease(ref("a")):
        await registry.load(ref("b"), pinned=True)  # rows change, what routing knows does not
        assert registry.profiles() is before
    drop(root, "aa", value=3)
    await eventually(lambda: len(registry.profiles()) == 3)
    three = registry.profiles()
    assert three[0] is a
    assert three[2] is b
    drop(root, "a", value=1, description="second")
    await eventually(lambda: registry.profiles()[0].description == "second")
    await eventually(is_ready(registry, "a"))
    assert registry.profiles()[1:] == three[1:]
    assert all(now is then for now, then in zip(registry.profiles()[1:], three[1:], strict=True))
    shutil.rmtree(root / "aa")
    await eventually(lambda: len(registry.profiles()) == 2)
    assert registry.profiles()[1] is b


async def until(
    events: AsyncIterator[AdapterEvent], last: Callable[[AdapterEvent], bool]
) -> AsyncIterator[AdapterEvent]:
    async with asyncio.timeout(10):
        async for event in events:
            yield event
            if last(event):
                return


async def test_a_load_that_fails_leaves_the_pin_as_it_was(root, engine, start_registry):
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.faults["m"] = AdapterRejected("no")
    with pytest.raises(AdapterRejected):
        await registry.load(ref("m"), pinned=True)
    assert not registry.get("m").pinned
    engine.faults.clear()
    assert (await registry.load(ref("m"), pinned=True)).pinned


async def test_settled_gives_up_in_time(root, engine, start_registry):
    drop(root, "m")
    engine.loading.clear()
    registry = await start_registry(settle=0.05)
    assert not await registry.settled(0.05)
    engine.loading.set()
    assert await registry.settled(5)


# -- leases: one load for all who wait, nothing lost by anyone who gives up, unload after the last


async def hold(registry: Registry, name: str, until: asyncio.Event | None = None) -> str:
    async with registry.lease(ref(name)) as lease:
        if until is not None:
            await until.wait()
        return lease.digest


async def test_many_leases_of_a_cold_version_share_one_load(root, engine, start_registry):
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.loading.clear()
    holders = [asyncio.create_task(hold(registry, "m")) for _ in range(20)]
    await eventually(lambda: len(engine.loads) == 1)
    assert states(registry) == {"m@0": "loading"}
    engine.loading.set()
    assert len(set(await asyncio.gather(*holders))) == 1
    assert engine.loads == ["m"]


async def test_a_failed_load_is_told_to_all_and_nothing_is_left(root, engine, start_registry):
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


async def test_a_bug_in_a_load_is_quarantined_without_its_text(root, engine, start_registry):
    drop(root, "m")
    engine.faults["m"] = RuntimeError("secret detail")
    registry = await start_registry()
    assert states(registry) == {"m@0": "quarantined"}
    assert "secret" not in registry.get("m").error


async def test_giving_up_does_not_stop_the_load_for_others(root, engine, start_registry):
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.loading.clear()
    first, second = (asyncio.create_task(hold(registry, "m")) for _ in range(2))
    await eventually(lambda: len(engine.loads) == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), registry.lease(ref("m")):
            pytest.fail("leased")
    engine.loading.set()
    assert await second in engine.held
    assert registry.get("m").leases == leases(registry) == 0
    assert all(r.leases == 0 for r in registry._residency)


async def test_a_slow_load_holds_up_nobody_else(root, engine, start_registry):
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


async def test_unload_waits_for_the_last_lease_and_tells_the_bytes(root, engine, start_registry):
    drop(root, "m")
    registry = await start_registry()
    size, release = host_bytes(registry), asyncio.Event()
    holder = asyncio.create_task(hold(registry, "m", release))
    await asyncio.sleep(0)
    unloads = [asyncio.create_task(registry.unload(ref("m"))) for _ in range(2)]
    await asyncio.sleep(0.02)
    assert (engine.unloads, states(registry)) == ([], {"m@0": "offloaded"})
    assert not any(unload.done() for unload in unloads)
    release.set()
    assert [freed for _, freed in await asyncio.gather(*unloads)] == [size, size]
    assert engine.unloads == ["m"]
    assert await hold(registry, "m") == await holder
    assert await registry.unload(ref("m")) == (registry.get("m"), size)
    assert await registry.unload(ref("m")) == (registry.get("m"), 0)


async def test_an_unload_that_nobody_waits_for_any_more_goes_on(root, engine, start_registry):
    drop(root, "m")
    registry, release = await start_registry(), asyncio.Event()
    holder = asyncio.create_task(hold(registry, "m", release))
    await asyncio.sleep(0)
    unload = asyncio.create_task(registry.unload(ref("m")))
    await asyncio.sleep(0.02)
    unload.cancel()
    release.set()
    await holder
    await eventually(lambda: engine.unloads == ["m"])


async def test_a_request_that_comes_during_an_unload_keeps_it(root, engine, start_registry):
    drop(root, "m")
    registry = await start_registry()
    async with registry.lease(ref("m")) as outer:
        unload = asyncio.create_task(registry.unload(ref("m")))
        await asyncio.sleep(0.02)
        async with registry.lease(ref("m")) as inner:
            assert inner.digest == outer.digest
        assert (await unload)[1] == 0
    assert states(registry) == {"m@0": "ready"}
    assert engine.loads == ["m"]


async def test_unload_of_one_of_two_versions_with_the_same_bytes_frees_nothing(root, engine, start_registry):
    drop(root, "a")
    drop(root, "b")
    registry = await start_registry()
    assert (await registry.unload(ref("a")))[1] == 0
    async with registry.lease(ref("b")) as lease:
        assert lease.digest in engine.held
    assert (await registry.unload(ref("b")))[1] > 0


async def test_unload_while_it_loads_waits_for_the_load(root, engine, start_registry):
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


async def test_a_hundred_unloads_under_leases(root, engine, start_registry):
    for name in ("a", "b"):
        drop(root, name, value=ord(name))
    registry = await start_registry()
    rounds = 0

    async def work(name: str) -> None:
        while rounds < 100:
            async with registry.lease(ref(name)) as lease:
                assert lease.digest in engine.held
                await asyncio.sleep(0)
                assert lease.digest in engine.held

    workers = [asyncio.create_task(work(name)) for name in "aabb"]
    while rounds < 100:
        await asyncio.gather(registry.unload(ref("a")), registry.unload(ref("b")))
        rounds += 1
    await asyncio.gather(*workers)
    await registry.unload(ref("a"))
    await registry.unload(ref("b"))
    assert (engine.held, leases(registry), host_bytes(registry), len(registry._residency)) == ({}, 0, 0, 0)


async def test_closing_ends_who_waits(root, engine, start_registry):
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
