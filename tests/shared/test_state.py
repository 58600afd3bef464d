"""Documents that edges share: changed at one, known at all; refused where two change at once, or none can."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from router.errors import ChangedElsewhere, ConfigError, SharedDown
from router.shared.documents import Beat, SharedDocument
from router.shared.state import SharedState
from tests.registry.life import eventually
from tests.shared.conftest import Edge
from tests.shared.memory import MemoryDatabase, MemoryTable


class Part:
    """Who has documents: what it began with, and what it heard of others."""

    def __init__(self, shared: SharedState, **own: Any) -> None:
        self.own: Mapping[str, Any] = {f"p/{key}": value for key, value in own.items()}
        self.heard: list[str] = []
        shared.join(lambda: self.own, self._agree)

    def _agree(self, keys: Collection[str]) -> None:
        self.heard += keys


async def test_a_change_at_one_edge_is_known_at_the_other(edge: Edge) -> None:
    a, b = await edge("a"), await edge("b")
    part = Part(b)
    await a.put("p/x", {"n": 1})
    assert (a.get("p/x"), a.get("p/y")) == ({"n": 1}, None)
    await eventually(lambda: part.heard == ["p/x"])
    assert (b.get("p/x"), list(b.known())) == ({"n": 1}, ["p/x"])
    await b.put("p/x", {"n": 2})
    await eventually(lambda: a.get("p/x") == {"n": 2})
    assert part.heard == ["p/x"]  # its own change is no news


async def test_of_two_changes_at_once_one_is_told_to_look_again(edge: Edge, database: MemoryDatabase) -> None:
    a, b = await edge("a"), await edge("b")
    done = await asyncio.gather(a.put("p/x", 1), b.put("p/x", 2), return_exceptions=True)
    (refused,) = [one for one in done if one is not None]
    assert isinstance(refused, ChangedElsewhere)
    assert "p x was changed at another edge meanwhile" in refused.message
    loser = b if done[0] is None else a
    holds = database.rows["p/x"].value
    await eventually(lambda: loser.get("p/x") == holds)
    await loser.put("p/x", 3)
    await eventually(lambda: (a.get("p/x"), b.get("p/x")) == (3, 3))


async def test_the_first_edge_fills_it_and_one_that_joins_takes_what_there_is(edge: Edge) -> None:
    a = await edge("a")
    first = Part(a, x=1, y=2)
    await eventually(lambda: len(a.known()) == 2)
    assert sorted(first.heard) == ["p/x", "p/y"]
    b = await edge("b")
    second = Part(b, x=9, z=9)
    assert (b.get("p/x"), b.get("p/z")) == (1, None)
    assert sorted(second.heard) == ["p/x", "p/y", "p/z"]  # z too: it is no more


async def test_away_and_back(edge: Edge, database: MemoryDatabase, caplog: pytest.LogCaptureFixture) -> None:
    a, b = await edge("a"), await edge("b")
    part = Part(b)
    await a.put("p/x", 1)
    await eventually(lambda: b.get("p/x") == 1)
    assert not b.flaws
    database.down = True
    await eventually(lambda: bool(a.problem and b.problem))
    (flaw,) = b.flaws
    assert "what was known last holds, and no change is taken" in flaw
    assert b.get("p/x") == 1
    with pytest.raises(SharedDown, match="then try again"):
        await b.put("p/x", 2)
    database.down = False
    await eventually(lambda: not a.problem and not b.problem)
    await a.put("p/x", 3)
    await eventually(lambda: b.get("p/x") == 3)
    assert part.heard == ["p/x", "p/x"]
    assert [r.levelname for r in caplog.records if "what edges share cannot" in r.message] == ["ERROR"] * 2


async def test_it_goes_away_between_two_looks(edge: Edge, database: MemoryDatabase) -> None:
    a = await edge("a")
    database.down = True
    with pytest.raises(SharedDown, match=r"look what holds when it is back|bring it back"):
        await a.put("p/x", 1)


async def test_an_edge_starts_without_it(edge: Edge, database: MemoryDatabase) -> None:
    database.down = True
    a = await edge("a")
    part = Part(a, x=1)
    assert a.flaws
    database.down = False
    await eventually(lambda: a.get("p/x") == 1)
    assert part.heard == ["p/x"]


async def test_a_database_that_was_set_back_counts(edge: Edge, database: MemoryDatabase) -> None:
    a = await edge("a")
    part = Part(a)
    for n in range(3):
        await a.put(f"p/{n}", n)
    await eventually(lambda: a._revision == 3)
    database.rows = {"p/0": SharedDocument("p/0", 1, "old")}
    await eventually(lambda: a.get("p/0") == "old")
    assert (a.get("p/1"), a.get("p/2")) == (None, None)
    part.own = {"p/2": "mine"}
    database.rows = {}
    await eventually(lambda: a.get("p/2") == "mine")
    assert a.get("p/0") is None
    await a.put("p/1", "new")


async def test_edges_count_each_other_and_hear_what_was_used(edge: Edge) -> None:
    a = await edge("a")
    heard: list[Sequence[Beat]] = []
    a.others = heard.append
    b = await edge("b")
    b.used = lambda: {"client:x": [1.0]}
    await eventually(lambda: a.edges == 2 and any(beat.used for beat in heard[-1]))
    assert heard[-1][0].edge == "b"
    await b.close()
    await eventually(lambda: a.edges == 1)


async def test_what_fails_to_take_over_ends_nothing(
    edge: Edge, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await edge("a"), await edge("b")

    def fail(_: Collection[str]) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    part = Part(b)
    await a.put("p/x", 1)
    await eventually(lambda: bool(part.heard))
    monkeypatch.setattr(b, "_agree", fail)
    await a.put("p/x", 2)
    await eventually(lambda: "a shared document cannot be used" in caplog.text)
    await eventually(lambda: part.heard == ["p/x", "p/x"])  # tried again
    await a.put("p/y", 3)
    await eventually(lambda: b.get("p/y") == 3 and not b.flaws)


async def test_one_of_a_newer_version_stops_the_start(database: MemoryDatabase) -> None:
    class Newer(MemoryTable):
        async def open(self) -> None:
            raise ConfigError("format 2")

    with pytest.raises(ConfigError, match="format 2"):
        await SharedState(Newer(database, "a")).start()
