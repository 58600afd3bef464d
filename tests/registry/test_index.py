"""Which version answers for a name, setting it, at one edge and at several, and the events of it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import AdapterNotFound, AdapterRejected, ChangedElsewhere, NotSaved, SharedDown, StaleEtag
from router.ports import Force
from router.registry import state
from router.registry.folders import AdapterPlace, FoundFolder, Stamp
from router.registry.format.artifact import Inspection
from router.registry.format.manifest import Manifest
from router.registry.index import IN_A_ROW, EventHub, Mailbox, candidate, default_version
from router.registry.record import GateVerdict, Live, Standing, VersionRecord
from router.registry.registry import Registry, RegistryOptions
from router.registry.residency import Resident
from router.shared.state import SharedState
from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterRef, AdapterState
from router.v1 import adapters_pb2 as pb
from tests.fakes import FakeRouter
from tests.registry.cards import version
from tests.registry.conftest import FAST
from tests.registry.life import StubEngine, drop, eventually, ref, states
from tests.server.helpers import details, failure
from tests.shared.memory import MemoryDatabase, MemoryTable

PASSED, PENDING, FAILED = Standing.PASSED, Standing.PENDING, Standing.FAILED
INSPECTION = Inspection("m", "0", Manifest("m"), 1, (), 1, (), "")
FOUND = FoundFolder(AdapterPlace(Path("/x"), "x"), Path("/"), Stamp())


def versions(text: str) -> list[VersionRecord]:
    """`1.0 1.1+ 1.2!`: + is proven, ! is quarantined; * passed the gate, ? may yet pass."""
    records = []
    for word in text.split():
        problem = "refused" if "!" in word else ""
        record = VersionRecord(
            AdapterRef("m", word.rstrip("+!*?")), FOUND, None, lambda _: None, problem=problem
        )
        if "+" in word:
            prove(record)
        standing = {"*": PASSED, "?": PENDING}.get(word[-1], FAILED)
        record.ruled(GateVerdict(standing, open=standing is PASSED))
        records.append(record)
    return records


def prove(record: VersionRecord) -> None:
    """It was loaded, answered its probes, and left memory again."""
    task: Any = object()
    record.load_began(task)
    record.load_succeeded(Live(Resident("digest", 1), INSPECTION, record.found.stamp))
    record.load_ended()
    record.evicted()


@pytest.mark.parametrize(
    ("there", "chosen", "current", "expected", "next_default"),
    [
        ("", "", "", "", None),
        ("1.0 1.10 1.9", "", "", "1.10", None),  # at the start the highest
        ("1.0 1.10!", "", "", "1.0", None),  # that is not quarantined
        ("1.0! 1.1!", "", "", "", None),
        ("1.0+ 1.1", "", "1.0", "1.0", "1.1"),  # a new one has to prove itself
        ("1.0+ 1.1 1.2 1.3!", "", "1.0", "1.0", "1.2"),
        ("1.0+ 1.1+ 1.2", "", "1.0", "1.1", "1.2"),
        ("1.0 1.1+", "", "1.0", "1.1", None),
        ("0.9+ 1.0", "", "1.0", "1.0", None),  # never downwards by itself
        ("0.9+ 0.8+ 1.1", "", "1.0", "0.9", "1.1"),  # the present one is gone: a proven one
        ("0.8 0.9 1.0!", "", "1.0", "0.9", None),
        ("1.0 2.0+", "1.0", "2.0", "1.0", None),  # chosen
        ("1.0! 2.0+", "1.0", "1.0", "1.0", None),  # also when it is refused: 2.0 may be what was rolled back
        ("2.0+", "1.0", "1.0", "2.0", None),  # but not when it is gone
        ("1.0* 1.1", "", "", "1.0", None),  # with the gate: at the start the highest that passed
        ("1.0 1.1? 1.2", "", "", "1.1", "1.2"),  # or may yet pass
        ("1.0+* 1.1*", "", "1.0", "1.0", "1.1"),
        ("1.0+* 1.1+* 1.2+", "", "1.0", "1.1", None),  # nothing that failed takes over
        ("1.0* 1.1+", "", "1.1", "1.1", "1.0"),  # but gives way, also to a lower one
        ("1.0+* 1.1+", "", "1.1", "1.0", None),
        ("1.0+* 1.1+*", "1.0", "1.1", "1.0", None),
        ("1.0 1.1+*", "1.0", "1.1", "1.0", None),  # what was chosen is
    ],
)
def test_the_default_version(there, chosen, current, expected, next_default):
    records = versions(there)
    default = default_version(records, chosen, current)
    assert default == expected
    if default and not chosen:
        found = candidate(records, default)
        assert (found and found.ref.version) == next_default


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
    return found


async def test_what_cannot_be_saved_changes_nothing(root, tmp_path, start_registry, monkeypatch):
    two(root)
    registry = await start_registry()
    with monkeypatch.context() as patched:
        patched.setattr(state, "write_atomically", full)
        with pytest.raises(NotSaved):
            await registry.set_default(ref("m", "1.0"))
        assert registry.resolve("m").ref == ref("m", "2.0")
    await registry.set_default(ref("m", "1.0"))
    assert kept(tmp_path) == {"m": "1.0"}
    with monkeypatch.context() as patched:
        patched.setattr(state, "write_atomically", full)
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
        write = state.write_atomically

        def slow(path: Path, data: bytes) -> None:
            self.threads.add(threading.get_ident())
            self.begun.set()
            assert self.go.wait(10)
            write(path, data)

        monkeypatch.setattr(state, "write_atomically", slow)


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
    await eventually(lambda: not again._chooser.shared.problem, 2)  # type: ignore[union-attr]
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
    await eventually(lambda: bool(a._chooser.shared.keys("default/")), 2)  # type: ignore[union-attr]
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
    await eventually(lambda: b._choices.get("m") == "1.0", 2)
    await a._chooser.shared.put("default/m", {"version": 3})  # type: ignore[union-attr]
    await eventually(lambda: "cannot be used" in caplog.text, 2)
    assert b._choices.get("m") == "1.0"


# -- events


ADDED, CHANGED, REMOVED = AdapterEventKind.ADDED, AdapterEventKind.CHANGED, AdapterEventKind.REMOVED


def info(name: str, state: AdapterState = AdapterState.DISCOVERED, error: str = "") -> AdapterInfo:
    return AdapterInfo(AdapterRef(name, "1.0.0"), state, error=error)


def watch(hub: EventHub, *names: str) -> AsyncGenerator[AdapterEvent, None]:
    """Watch a hub of a registry that has these."""
    return hub.watch(lambda: [info(name).ref for name in names], lambda ref: info(ref.name))


async def read(
    hub_events: AsyncGenerator[AdapterEvent, None], count: int
) -> list[tuple[AdapterEventKind, str]]:
    events = [await asyncio.wait_for(anext(hub_events), 1) for _ in range(count)]
    return [(e.kind, e.adapter.ref.name) for e in events]


async def test_present_set_comes_first_then_changes_to_every_watcher():
    hub = EventHub()
    first, second = watch(hub, "a", "b"), watch(hub)
    assert await read(first, 2) == [(ADDED, "a"), (ADDED, "b")]
    waiting = asyncio.ensure_future(anext(second))
    await asyncio.sleep(0)
    hub.publish(CHANGED, info("a"))
    assert await read(first, 1) == [(CHANGED, "a")]
    assert (await waiting).adapter.ref.name == "a"
    hub.publish(REMOVED, info("b"))
    assert await read(first, 1) == [(REMOVED, "b")]


async def test_a_closed_watcher_is_forgotten_and_closing_the_hub_ends_all():
    hub = EventHub()
    gone, kept = watch(hub, "a"), watch(hub, "a")
    await read(gone, 1)
    await read(kept, 1)
    await gone.aclose()
    assert len(hub._boxes) == 1
    hub.close()
    with pytest.raises(StopAsyncIteration):
        await anext(kept)
    with pytest.raises(StopAsyncIteration):
        await anext(watch(hub))
    assert not hub._boxes


@given(st.lists(st.sampled_from([(n, flip) for n in "abc" for flip in (True, False)]), max_size=40))
def test_a_slow_reader_ends_with_the_right_picture(steps):
    """However events merge, a watcher that applies what it reads knows what is there, in bounded space."""

    async def run() -> None:
        truth: dict[str, str] = {"a": "start"}
        box = Mailbox([info("a").ref], lambda ref: info(ref.name, error=truth[ref.name]))
        seen = dict[str, str]()
        for number, (name, present) in enumerate(steps):
            kind = CHANGED if name in truth else ADDED
            if present:
                truth[name] = str(number)
            elif name in truth:
                del truth[name]
                kind = REMOVED
            else:
                continue
            box.put(AdapterEvent(kind, info(name, error=str(number)), 0.0))
            assert len(box._events) + len(box._present) <= 3
            if number % 5 == 0 and (box._events or box._present):
                apply(await box.take(), seen)
        while box._events or box._present:
            apply(await box.take(), seen)
        assert seen == truth

    asyncio.run(run())


async def test_thousands_of_present_ones_leave_the_loop_its_turns():
    hub, turns, names = EventHub(), 0, [f"a{i}" for i in range(1_000)]

    async def beside() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(beside())
    events = watch(hub, *names)
    seen = [(await anext(events)).adapter.ref.name for _ in names]
    other.cancel()
    assert seen == names
    assert turns >= 1_000 // IN_A_ROW


async def test_what_changes_before_its_turn_is_told_as_it_is_then():
    hub, there = EventHub(), {name: info(name) for name in ("a", "b", "c")}
    events = hub.watch(lambda: [i.ref for i in there.values()], lambda ref: there.get(ref.name))
    assert (await anext(events)).adapter.ref.name == "a"
    there["c"] = info("c", AdapterState.READY)
    hub.publish(CHANGED, there["c"])
    hub.publish(REMOVED, there.pop("b"))
    event = await anext(events)
    assert (event.kind, event.adapter) == (ADDED, there["c"])
    hub.publish(CHANGED, info("a"))
    assert await read(events, 1) == [(CHANGED, "a")]  # nothing more of b and c


def apply(event: AdapterEvent | None, seen: dict[str, str]) -> None:
    assert event is not None
    name = event.adapter.ref.name
    if event.kind is REMOVED:
        del seen[name]
    else:
        assert (name in seen) is (event.kind is CHANGED)
        seen[name] = event.adapter.error


async def test_subscribers_hear_once_of_changes_made_together(caplog):
    hub, calls = EventHub(), list[int]()

    def broken() -> None:
        raise RuntimeError("mine")

    hub.subscribe(broken)
    hub.subscribe(lambda: calls.append(1))
    hub.profiles_changed()
    hub.profiles_changed()
    await asyncio.sleep(0)
    assert calls == [1]
    assert "a subscriber of adapter changes failed" in caplog.text
    hub.profiles_changed()
    await asyncio.sleep(0)
    assert calls == [1, 1]
