"""The table of shared documents in a real PostgreSQL, and the memory that stands for it in other tests."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import psycopg
import pytest

from router.errors import ConfigError, SharedDown
from router.shared import database as module
from router.shared.documents import SharedDocument, SharedTable
from router.shared.state import SharedState
from tests.extensions.experiments.store.postgres import Server
from tests.registry.life import eventually
from tests.shared.conftest import fresh
from tests.shared.memory import MemoryDatabase, MemoryTable

NUMBERS = itertools.count()
Open = Callable[[str], Awaitable[SharedTable]]


@pytest.fixture(params=["memory", pytest.param("postgresql", marks=pytest.mark.slow)])
async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """`await opened("a")`: an edge's table."""
    if request.param == "memory":
        database = MemoryDatabase()

        def make(edge: str) -> SharedTable:
            return MemoryTable(database, edge)
    else:
        url = fresh(request.getfixturevalue("postgres"), f"t{next(NUMBERS)}")

        def make(edge: str) -> SharedTable:
            return SharedTable(url, edge)

    async with AsyncExitStack() as stack:

        async def begin(edge: str) -> SharedTable:
            table = make(edge)
            await table.open()
            stack.push_async_callback(table.close)
            return table

        yield begin


async def test_a_document_has_one_revision_at_a_time(opened: Open) -> None:
    a, b = await opened("a"), await opened("b")
    assert await a.changed(-1) == {}
    assert await a.put("x", {"n": 1.0, "t": "é\n"}, 0) == 1
    assert await b.put("x", 2, 0) is None
    assert await b.put("y", None, 3) is None
    assert await b.put("x", [True], 1) == 2
    assert await a.put("y", 3, 0) == 3
    found = {"x": SharedDocument("x", 2, [True]), "y": SharedDocument("y", 3, 3)}
    assert (await a.changed(2), await b.changed(3)) == (found, None)


async def test_writers_at_once_are_seen_in_order(opened: Open) -> None:
    a, b = await opened("a"), await opened("b")
    writers = [await opened(f"w{n}") for n in range(4)]
    writing = asyncio.gather(*(writers[n % 4].put(f"k{n}", n, 0) for n in range(40)))
    seen = 0
    while seen < 40:
        found = await b.changed(seen) or {}
        revisions = sorted(one.revision for one in found.values())
        assert revisions == list(range(1, len(revisions) + 1))  # none is missed
        seen = max(seen, len(revisions))
        await asyncio.sleep(0)
    assert sorted(one or 0 for one in await writing) == list(range(1, 41))
    assert await a.put("k0", 1, 0) is None


async def test_only_the_first_seeds(opened: Open) -> None:
    a, b = await opened("a"), await opened("b")
    done = await asyncio.gather(a.seed({"x": 1, "y": 2}), b.seed({"x": 3}))
    assert sorted(done) == [False, True]


async def test_edges_that_are_there(opened: Open) -> None:
    a, b = await opened("a"), await opened("b")
    assert list(await a.beat({"client:x": [1.0, 2.5]})) == []
    (found,) = await b.beat({})
    assert (found.edge, dict(found.used)) == ("a", {"client:x": [1.0, 2.5]})
    await a.leave()
    assert list(await b.beat({})) == []
    with pytest.raises(SharedDown):
        await a.beat({})


def test_it_is_a_postgresql_database() -> None:
    with pytest.raises(ConfigError, match="must be a PostgreSQL database"):
        SharedTable("sqlite:///x.db", "a")


@pytest.mark.slow
async def test_one_of_a_newer_version_is_refused(postgres: Server) -> None:
    url = fresh(postgres, "newer")
    table = SharedTable(url, "a")
    await table.open()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE lora_router_shared SET value = '2' WHERE revision = 0")
    with pytest.raises(ConfigError, match="format 2"):
        await table.open()
    await table.close()


@pytest.mark.slow
async def test_a_user_without_rights_is_told_what_to_grant(postgres: Server) -> None:
    url = fresh(postgres, "rights")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("REVOKE ALL ON SCHEMA public FROM public")
        connection.execute("CREATE ROLE nobodys LOGIN")
    table = SharedTable(url.replace("router@", "nobodys@"), "a")
    with pytest.raises(SharedDown, match=r"schema.*grant the user CREATE"):
        await table.open()
    await table.close()


@pytest.mark.slow
async def test_a_server_that_is_killed_comes_back_or_stands_still(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.7)
    url = fresh(postgres, "killed")
    a, b = (SharedState(SharedTable(url, name), look_seconds=0.1) for name in "ab")
    await a.start()
    await b.start()
    await a.put("x", 1)
    await asyncio.to_thread(postgres.signal, signal.SIGKILL)
    await eventually(lambda: bool(a.problem and b.problem))
    with pytest.raises(SharedDown):
        await a.put("x", 2)
    await asyncio.to_thread(postgres.start)
    await eventually(lambda: not (a.problem or b.problem))
    await a.put("x", 3)
    await eventually(lambda: b.get("x") == 3, 2)
    postgres.signal(signal.SIGSTOP)
    try:
        await eventually(lambda: bool(a.problem and b.problem))
        assert b.get("x") == 3
    finally:
        postgres.signal(signal.SIGCONT)
    await eventually(lambda: not (a.problem or b.problem))
    await b.put("x", 4)
    await eventually(lambda: a.get("x") == 4, 2)
    await a.close()
    await b.close()
