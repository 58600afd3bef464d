"""The registry from outside: what is found, leased, listed, set as default."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from router.errors import AdapterNotFound, AdapterRejected, StaleEtag
from router.registry.registry import Registry
from router.types import AdapterEvent, AdapterState, Visible
from tests.registry.conftest import StartRegistry
from tests.registry.life import SIZE, StubEngine, drop, eventually, host_bytes, is_ready, leases, ref, states

pytestmark = pytest.mark.slow


async def test_folders_are_found_defaults_loaded_and_leased(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
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


async def test_version_folders_need_no_manifest(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m", folder="m/1.0")
    drop(root, "m", folder="m/1.1")
    registry = await start_registry()
    assert registry.resolve("m").ref == ref("m", "1.1")
    async with registry.lease(ref("m", "1.0")) as old, registry.lease(ref("m", "1.1")) as new:
        assert old.digest == new.digest  # same bytes: held once
    assert len(engine.held) == 1


async def test_what_is_not_visible_is_not_there_and_named_by_no_hint(
    root: Path, start_registry: StartRegistry
) -> None:
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
    root: Path, start_registry: StartRegistry
) -> None:
    """As one that was installed before such templates were refused."""
    (drop(root, "bomb") / "adapter.toml").write_text(f"[prompt]\ntemplate = '{'{prompt}' * 1_990}'\n")
    registry = await start_registry()
    await eventually(lambda: states(registry) == {"bomb@0": "quarantined"})
    place = r"adapter\.toml \[prompt\] template.*again at character 9"
    with pytest.raises(AdapterRejected, match=place):
        registry.resolve("bomb")


async def test_errors_say_what_to_do(root: Path, start_registry: StartRegistry) -> None:
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


async def test_default_can_be_set_rolls_back_and_survives(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
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


async def test_etag_changes_with_changes_not_with_use(root: Path, start_registry: StartRegistry) -> None:
    drop(root, "m")
    registry = await start_registry()
    before = registry.etag(ref("m"))
    async with registry.lease(ref("m")):
        pass
    assert registry.etag(ref("m")) == before
    await registry.load(ref("m"), pinned=True)
    assert registry.etag(ref("m")) != before


async def test_what_is_pinned_must_stay(root: Path, start_registry: StartRegistry) -> None:
    drop(root, "m")
    registry = await start_registry()
    digest = (await registry.load(ref("m"))).digest
    assert not registry.keeps(digest)
    await registry.load(ref("m"), pinned=True)
    assert registry.keeps(digest)
    assert not registry.keeps("unknown")


async def test_a_quarantined_version_cannot_be_the_default(root: Path, start_registry: StartRegistry) -> None:
    drop(root, "m", "1.0", folder="m/1.0")
    (drop(root, "m", "2.0", folder="m/2.0") / "adapter_config.json").write_text("{")
    registry: Registry = await start_registry()
    await eventually(lambda: states(registry).get("m@2.0") == AdapterState.QUARANTINED)
    assert registry.resolve("m").ref.version == "1.0"
    with pytest.raises(AdapterRejected, match="quarantined"):
        await registry.set_default(ref("m", "2.0"))


async def test_what_is_loaded_counts_against_host_memory(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "a", value=1)
    drop(root, "b", value=2)
    registry = await start_registry()
    async with registry.lease(ref("a")):
        assert (sorted(engine.loads), leases(registry), len(engine.held)) == (["a", "b"], 1, 2)
        assert states(registry) == {"a@0": "ready", "b@0": "ready"}
        assert host_bytes(registry) == 2 * SIZE


async def test_watchers_see_a_life(root: Path, start_registry: StartRegistry) -> None:
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
    await eventually(lambda: changed[-1] == 1)  # told in the next turn of the loop
    assert 2 in changed


async def test_a_list_goes_on_behind_any_version(root: Path, start_registry: StartRegistry) -> None:
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


async def test_profiles_stay_the_same_objects_until_they_change(
    root: Path, start_registry: StartRegistry
) -> None:
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


async def test_a_load_that_fails_leaves_the_pin_as_it_was(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    registry = await start_registry(preload=False)
    engine.faults["m"] = AdapterRejected("no")
    with pytest.raises(AdapterRejected):
        await registry.load(ref("m"), pinned=True)
    assert not registry.get("m").pinned
    engine.faults.clear()
    assert (await registry.load(ref("m"), pinned=True)).pinned


async def test_settled_gives_up_in_time(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    drop(root, "m")
    engine.loading.clear()
    registry = await start_registry(settle=0.05)
    assert not await registry.settled(0.05)
    engine.loading.set()
    assert await registry.settled(5)
