"""Defaults that two registries share: what is chosen at one holds at both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from router.errors import ChangedElsewhere, SharedDown
from router.ports import Force
from router.registry.registry import Registry
from router.shared.state import SharedState
from tests.registry.cards import version
from tests.registry.conftest import FAST
from tests.registry.life import StubEngine, eventually, ref
from tests.shared.memory import MemoryDatabase, MemoryTable

Edge = Callable[..., Awaitable[Registry]]


@pytest.fixture
async def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
async def edge(database: MemoryDatabase, root: Path, tmp_path: Path) -> AsyncIterator[Edge]:
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


async def test_what_is_chosen_at_one_holds_at_both_and_for_one_that_comes(edge: Edge, root: Path) -> None:
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


async def test_of_two_at_once_one_is_refused(edge: Edge, root: Path) -> None:
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
    edge: Edge, root: Path, database: MemoryDatabase
) -> None:
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


async def test_the_first_edge_brings_what_it_had_and_the_second_gives_way(edge: Edge, root: Path) -> None:
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


async def test_a_version_that_is_not_here_yet_is_told_and_takes_effect_when_it_comes(
    edge: Edge, root: Path, tmp_path: Path
) -> None:
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


async def test_an_override_and_the_way_back_are_those_of_all(edge: Edge, root: Path) -> None:
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


async def test_what_is_not_understood_changes_nothing(
    edge: Edge, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version(root, "1.0")
    a, b = await edge("a"), await edge("b")
    await a.set_default(ref("m", "1.0"))
    await eventually(lambda: b._choices.get("m") == "1.0", 2)
    await a._chooser.shared.put("default/m", {"version": 3})  # type: ignore[union-attr]
    await eventually(lambda: "cannot be used" in caplog.text, 2)
    assert b._choices.get("m") == "1.0"
