"""Which version answers for a name by the rule, and the events of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.registry.folders import Examined, FoundFolder, Place
from router.registry.format.artifact import Inspection
from router.registry.format.manifest import Manifest
from router.registry.residency import Resident
from router.registry.table import IN_A_ROW, Mailbox, candidate, default_version
from router.registry.version import AdapterVersion, GateVerdict, Live
from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterRef, AdapterState
from tests.registry.life import drop, eventually, states

INSPECTION = Inspection("m", "0", Manifest("m"), 1, (), 1, ())
FOUND = FoundFolder(Place(Path("/x"), "x"), Path("/"))


def versions(text: str) -> list[AdapterVersion]:
    """`1.0 1.1+ 1.2!`: + is proven, ! is quarantined; * passed the gate."""
    made = []
    for word in text.split():
        problem = "refused" if "!" in word else ""
        ref = AdapterRef("m", word.rstrip("+!*"))
        version = AdapterVersion(Examined(FOUND, ref, None, problem), lambda _: None)
        if "+" in word:
            prove(version)
        passed = word[-1] == "*"
        version.ruled(GateVerdict(passed, open=passed))
        made.append(version)
    return made


def prove(version: AdapterVersion) -> None:
    """It was loaded, answered its probes, and left memory again."""
    task: Any = object()
    version.load_began(task)
    version.load_succeeded(Live(Resident("digest", 1), INSPECTION, version.found))
    version.load_ended()
    version.evicted()


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


# -- events


ADDED, CHANGED, REMOVED = AdapterEventKind.ADDED, AdapterEventKind.CHANGED, AdapterEventKind.REMOVED


def info(name: str, state: AdapterState = AdapterState.DISCOVERED, error: str = "") -> AdapterInfo:
    return AdapterInfo(AdapterRef(name, "1.0.0"), state, error=error)


def mailbox(there: dict[str, AdapterInfo]) -> Mailbox:
    """Of a watcher who comes when these are there."""
    return Mailbox([i.ref for i in there.values()], lambda ref: there.get(ref.name))


@given(st.lists(st.sampled_from([(n, flip) for n in "abc" for flip in (True, False)]), max_size=40))
def test_a_slow_reader_ends_with_the_right_picture(steps):
    """However events merge, a watcher that applies what it reads knows what is there, in bounded space."""

    async def run() -> None:
        truth = {"a": info("a", error="start")}
        box, seen = mailbox(truth), dict[str, str]()
        events = box.events()
        for number, (name, present) in enumerate(steps):
            kind, now = CHANGED if name in truth else ADDED, info(name, error=str(number))
            if present:
                truth[name] = now
            elif name in truth:
                del truth[name]
                kind = REMOVED
            else:
                continue
            box.put(kind, now)
            assert len(box._waiting) <= 3
            if number % 5 == 0 and box._waiting:
                apply(await anext(events), seen)
        box.close()
        async for event in events:
            apply(event, seen)
        assert seen == {name: i.error for name, i in truth.items()}

    asyncio.run(run())


async def test_thousands_of_present_ones_leave_the_loop_its_turns():
    turns, there = 0, {f"a{i}": info(f"a{i}") for i in range(1_000)}

    async def beside() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(beside())
    box = mailbox(there)
    box.close()
    seen = [event.adapter.ref.name async for event in box.events()]
    other.cancel()
    assert seen == list(there)
    assert turns >= 1_000 // IN_A_ROW


async def test_what_changes_before_its_turn_is_told_as_it_is_then():
    there = {name: info(name) for name in ("a", "b", "c")}
    box = mailbox(there)
    events = box.events()
    assert (await anext(events)).adapter.ref.name == "a"
    there["c"] = info("c", AdapterState.READY)
    box.put(CHANGED, there["c"])
    box.put(REMOVED, there.pop("b"))
    box.put(CHANGED, info("a"))
    box.close()
    told = [(e.kind, e.adapter) async for e in events]
    assert told == [(ADDED, there["c"]), (CHANGED, there["a"])]  # nothing of b


def apply(event: AdapterEvent, seen: dict[str, str]) -> None:
    name = event.adapter.ref.name
    if event.kind is REMOVED:
        del seen[name]
    else:
        assert (name in seen) is (event.kind is CHANGED)
        seen[name] = event.adapter.error


async def test_closing_ends_all_watchers_and_one_that_left_is_forgotten(root, start_registry):
    drop(root, "a")
    registry = await start_registry()
    gone, kept = registry.watch(), registry.watch()
    assert {(await anext(one)).adapter.ref.name for one in (gone, kept)} == {"a"}
    await gone.aclose()
    await registry.close()
    with pytest.raises(StopAsyncIteration):
        await anext(kept)
    assert [event.kind async for event in registry.watch()] == ["added"]


async def test_a_subscriber_that_fails_harms_no_other(root, start_registry, caplog):
    registry, calls = await start_registry(), list[int]()

    def broken() -> None:
        raise RuntimeError("mine")

    registry.subscribe(broken)
    registry.subscribe(lambda: calls.append(1))
    drop(root, "a")
    await eventually(lambda: states(registry) == {"a@0": "ready"} and bool(calls))
    assert "a subscriber of adapter changes failed" in caplog.text
