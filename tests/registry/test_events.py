from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.registry.events import IN_A_ROW, EventHub, Mailbox
from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterRef, AdapterState

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


async def test_present_set_comes_first_then_changes_to_every_watcher() -> None:
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


async def test_a_closed_watcher_is_forgotten_and_closing_the_hub_ends_all() -> None:
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
def test_a_slow_reader_ends_with_the_right_picture(steps: list[tuple[str, bool]]) -> None:
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


async def test_thousands_of_present_ones_leave_the_loop_its_turns() -> None:
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


async def test_what_changes_before_its_turn_is_told_as_it_is_then() -> None:
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


async def test_subscribers_hear_once_of_changes_made_together(caplog: pytest.LogCaptureFixture) -> None:
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
