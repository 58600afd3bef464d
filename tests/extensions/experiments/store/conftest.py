"""A fresh store of each kind; PostgreSQL is a real server that the tests start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine

from router.extensions.experiments.store.store import ExperimentStore
from router.shared.database import parse_url
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.store.postgres import Server, binaries


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    found = Server(where, "-c fsync=off", "-c max_connections=40")
    yield found
    found.close()


POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.slow)  # a server of its own


@pytest.fixture(params=["sqlite", POSTGRESQL])
def url(request, tmp_path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/experiments.db"
    return empty(request.getfixturevalue("server"))


def empty(server: Server) -> str:
    engine = create_engine(parse_url(server.url()))
    with engine.begin() as conn:
        conn.exec_driver_sql("DROP SCHEMA public CASCADE")
        conn.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return server.url()


@pytest.fixture
def sql_store(url) -> Iterator[ExperimentStore]:
    found = ExperimentStore(url)
    yield found
    found.close()


@pytest.fixture(params=["memory", "sqlite", POSTGRESQL])
def store(request, tmp_path) -> Iterator[ExperimentStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    where = f"sqlite:///{tmp_path}/experiments.db"
    found = ExperimentStore(where if request.param == "sqlite" else empty(request.getfixturevalue("server")))
    yield found
    found.close()
