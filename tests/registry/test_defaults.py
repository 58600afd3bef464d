"""Default versions that operators set and take back, at one edge and at several."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from router.errors import AdapterNotFound, AdapterRejected, ChangedElsewhere, NotSaved, SharedDown, StaleEtag
from router.ports import Force
from router.registry import choices
from router.registry.registry import Registry, RegistryOptions
from router.shared.state import SharedState
from router.types import AdapterRef
from router.v1 import adapters_pb2 as pb
from tests.fakes import FakeRouter
from tests.registry.cards import version
from tests.registry.conftest import FAST
from tests.registry.life import StubEngine, drop, eventually, ref, states
from tests.server.helpers import details, failure
from tests.shared.memory import MemoryDatabase, MemoryTable


@pytest.mark.slow
async def test_a_chosen_version_that_breaks_is_not_replaced_in_silence(root, engine, start_registry):
    old = drop(root, "m", "1.0", 1, folder="m/1.0")
    drop(root, "m", "2.0", 2, folder="m/2.0")
    registry = await start_registry(preload=False)
    await registry.set_default(AdapterRef("m", "1.0"))
    weights = (old / "adapter_model.safetensors").read_bytes()
    (old / "adapter_model.safetensors").write_bytes(weights[:50])
    await eventually(lambda: states(registry)["m@1.0"] == "quarantined")
    with pytest.raises(AdapterRejected, match=r"m@1\.0 is quarantined"):
        registry.resolve("m")
    assert registry.profiles() == ()
    await registry.set_default(AdapterRef("m", "2.0"))
    assert [p.version for p in registry.profiles()] == ["2.0"]


def two(root: Path) -> None:
    drop(root, "m", "1.0", 1, folder="m/1.0")
    drop(root, "m", "2.0", 2, folder="m/2.0")


def full(*_: object) -> None:
    raise OSError(28, "No space left on device", "/srv/state/defaults.json")


def kept(tmp_path: Path) -> dict[str, Any]:
    (file,) = tmp_path.glob("state/registry/*/defaults.json")
    found: dict[str, Any] = json.loads(file.read_text())["defaults"]
    return {name: choice["version"] for name, choice in found.items() if choice["version"]}


async def test_what_cannot_be_saved_changes_nothing(root, tmp_path, start_registry, monkeypatch):
    two(root)
    registry = await start_registry()
    with monkeypatch.context() as patched:
        patched.setattr(choices, "write_atomically", full)
        with pytest.raises(NotSaved):
            await registry.set_default(ref("m", "1.0"))
        assert registry.resolve("m").ref == ref("m", "2.0")
    await registry.set_default(ref("m", "1.0"))
    assert kept(tmp_path) == {"m": "1.0"}
    with monkeypatch.context() as patched:
        patched.setattr(choices, "write_atomically", full)
        with pytest.raises(NotSaved):
            await registry.reset_default("m")
        assert registry.resolve("m").ref == ref("m", "1.0")
    assert kept(tmp_path) == {"m": "1.0"}
    assert (await registry.reset_default("m"))[0].ref == ref("m", "2.0")
    assert kept(tmp_path) == {}
    with pytest.raises(AdapterNotFound):
        await registry.reset_default("n")


class Slow:
    """A disk that takes its time: `write_atomically` until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun, self.threads = threading.Event(), threading.Event(), set[int]()
        write = choices.write_atomically

        def slow(path: Path, data: bytes) -> None:
            self.threads.add(threading.get_ident())
            self.begun.set()
            assert self.go.wait(10)
            write(path, data)

        monkeypatch.setattr(choices, "write_atomically", slow)


async def test_the_loop_goes_on_and_one_etag_is_good_for_one_change(
    root, tmp_path, start_registry, monkeypatch
):
    two(root)
    registry = await start_registry()
    disk, etag = Slow(monkeypatch), registry.etag(ref("m", "1.0"))
    calls = [asyncio.ensure_future(registry.set_default(ref("m", "1.0"), etag)) for _ in range(2)]
    await asyncio.to_thread(disk.begun.wait, 5)
    assert registry.resolve("m").ref == ref("m", "2.0")  # the loop runs, and nothing holds yet
    disk.go.set()
    (info, previous), stale = await asyncio.gather(*calls, return_exceptions=True)
    assert (info.ref, info.default, previous) == (ref("m", "1.0"), True, ref("m", "2.0"))
    assert isinstance(stale, StaleEtag)
    assert threading.get_ident() not in disk.threads


async def test_who_leaves_does_not_leave_half_a_change(root, tmp_path, start_registry, monkeypatch):
    two(root)
    registry = await start_registry()
    disk = Slow(monkeypatch)
    call = asyncio.ensure_future(registry.set_default(ref("m", "1.0")))
    await asyncio.to_thread(disk.begun.wait, 5)
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    disk.go.set()
    await registry.close()  # waits for it
    assert registry.resolve("m").ref == ref("m", "1.0")
    assert kept(tmp_path) == {"m": "1.0"}


@pytest.mark.slow
async def test_callers_are_told_that_it_was_not_saved_and_not_where(tmp_path, start_server, connect, caplog):
    two(root := tmp_path / "adapters")
    (tmp_path / "file").write_text("")  # a folder that nobody can write to, root neither
    registry = Registry(
        StubEngine(), [root], RegistryOptions(state_dir=tmp_path / "file/x", preload=False, gate="off")
    )
    await registry.start()
    await eventually(lambda: len(registry.list()) == 2)
    app = await start_server(registry=registry, router=FakeRouter(registry))
    stubs = connect(app)
    name = "adapters/m/versions/1.0"
    seen = await failure(stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=name)))
    assert (seen.code().name, details(seen)["ErrorInfo"].reason) == ("UNAVAILABLE", "NOT_SAVED")
    assert seen.details() == NotSaved.told
    assert str(tmp_path) not in repr((seen, details(seen)))
    assert str(tmp_path) in caplog.text
    got = await stubs.adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/m"))
    assert got.adapter.version == "2.0"
    await app.stop()
    await registry.close()


# -- defaults that two registries share: what is chosen at one holds at both


Edge = Callable[..., Awaitable[Registry]]


@pytest.fixture
async def database():
    return MemoryDatabase()


@pytest.fixture
async def edge(database, root, tmp_path):
    """`await edge("a")`: a registry with a state folder of its own, which shares what is chosen."""
    async with AsyncExitStack() as stack:

        async def begin(name: str, alone: bool = False, dirs: Path = root, gate: bool = False) -> Registry:
            options = replace(FAST, state_dir=tmp_path / name, gate=gate)
            registry = Registry(cast(Any, StubEngine()), [dirs], options)
            if not alone:
                shared = SharedState(MemoryTable(database, name), look_seconds=0.02)
                await shared.start()
                stack.push_async_callback(shared.close)
                registry.share(shared)
            stack.push_async_callback(registry.close)
            await registry.start()
            await registry.settled(10)
            return registry

        yield begin


def default(registry: Registry) -> str:
    return registry.resolve("m").ref.version


async def test_what_is_chosen_at_one_holds_at_both_and_for_one_that_comes(edge, root):
    for number in ("1.0", "2.0"):
        version(root, number)
    a, b = await edge("a"), await edge("b")
    assert (default(a), default(b)) == ("2.0", "2.0")
    await a.set_default(ref("m", "1.0"))
    assert default(a) == "1.0"
    await eventually(lambda: default(b) == "1.0", 2)
    assert default(await edge("c")) == "1.0"
    await b.reset_default("m")
    await eventually(lambda: default(a) == "2.0", 2)


async def test_of_two_at_once_one_is_refused(edge, root):
    for number in ("1.0", "2.0", "3.0"):
        version(root, number)
    a, b = await edge("a"), await edge("b")
    done = await asyncio.gather(
        a.set_default(ref("m", "1.0")), b.set_default(ref("m", "2.0")), return_exceptions=True
    )
    assert sorted(isinstance(one, ChangedElsewhere) for one in done) == [False, True]
    holds = "2.0" if isinstance(done[0], ChangedElsewhere) else "1.0"
    await eventually(lambda: default(a) == default(b) == holds, 2)


async def test_while_the_database_is_away_nothing_changes_and_a_start_has_what_was_known(
    edge, root, database
):
    for number in ("1.0", "2.0"):
        version(root, number)
    a, b = await edge("a"), await edge("b")
    await a.set_default(ref("m", "1.0"))
    await eventually(lambda: default(b) == "1.0", 2)
    await b.close()  # its file is written
    database.down = True
    with pytest.raises(SharedDown):
        await a.set_default(ref("m", "2.0"))
    assert default(a) == "1.0"
    again = await edge("b")
    assert default(again) == "1.0"
    database.down = False
    await eventually(lambda: not again._default_versions.shared.problem, 2)  # type: ignore[union-attr]
    await again.set_default(ref("m", "2.0"))
    await eventually(lambda: default(a) == "2.0", 2)


async def test_the_first_edge_brings_what_it_had_and_the_second_gives_way(edge, root):
    for number in ("1.0", "2.0", "3.0"):
        version(root, number)
    for name, chosen in (("a", "1.0"), ("b", "2.0")):
        alone = await edge(name, alone=True)
        await alone.set_default(ref("m", chosen))
        await alone.close()
    a = await edge("a")
    assert default(a) == "1.0"
    await eventually(lambda: bool(a._default_versions.shared.known()), 2)  # type: ignore[union-attr]
    assert default(await edge("b")) == "1.0"


async def test_a_version_that_is_not_here_yet_is_told_and_takes_effect_when_it_comes(edge, root, tmp_path):
    late = tmp_path / "late"
    for number in ("1.0", "2.0"):
        version(root, number)
    version(late, "2.0")
    a, b = await edge("a"), await edge("b", dirs=late)
    await a.set_default(ref("m", "1.0"))
    await eventually(lambda: bool(b.flaws), 2)
    assert b.flaws == ["m@1.0, the default of all edges, is in no adapters folder of this one"]
    assert (default(b), a.flaws) == ("2.0", [])
    version(late, "1.0")
    await eventually(lambda: default(b) == "1.0", 5)
    assert not b.flaws


async def test_an_override_and_the_way_back_are_those_of_all(edge, root):
    version(root, "1.0", gain=0.3)
    version(root, "1.1")
    a, b = await edge("a", gate="strict"), await edge("b", gate=True)
    await a.set_default(ref("m", "1.1"), force=Force("ann", "ticket 7"))
    await eventually(lambda: default(b) == "1.1", 2)
    for one in (b, await edge("c", gate="strict")):
        override = one.get("m").override
        assert override is not None
        assert (override.by, override.reason, default(one)) == ("ann", "ticket 7", "1.1")
    await b.set_default(ref("m", "1.0"))
    await eventually(lambda: default(a) == "1.0", 2)
    d = await edge("d", gate="strict")
    await d.set_default(ref("m", "1.1"))  # it was the default before, as it knows from the others
    await eventually(lambda: default(a) == "1.1", 2)


async def test_what_is_not_understood_changes_nothing(edge, root, caplog):
    version(root, "1.0")
    a, b = await edge("a"), await edge("b")
    await a.set_default(ref("m", "1.0"))
    await eventually(lambda: b._default_versions._choices.get("m").version == "1.0", 2)
    await a._default_versions.shared.put("default/m", {"version": 3})  # type: ignore[union-attr]
    await eventually(lambda: "cannot be used" in caplog.text, 2)
    assert b._default_versions._choices.get("m").version == "1.0"
