"""Edges that share a database, in memory or in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import psycopg
import pytest

from router.shared.state import SharedState
from tests.extensions.experiments.store.postgres import Server, binaries
from tests.shared.memory import MemoryDatabase, MemoryTable

Edge = Callable[..., Awaitable[SharedState]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server that the tests of one process share."""
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    found = Server(where, "-c fsync=off", "-c max_connections=40")
    yield found
    found.close()


def fresh(server: Server, name: str) -> str:
    """The URL of an empty database."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url(name)


@pytest.fixture
async def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
async def edge(database: MemoryDatabase) -> AsyncIterator[Edge]:
    """`await edge("a")`: one that follows the database."""
    async with AsyncExitStack() as stack:

        async def begin(name: str) -> SharedState:
            found = SharedState(MemoryTable(database, name), look_seconds=0.02)
            await found.start()
            stack.push_async_callback(found.close)
            return found

        yield begin
