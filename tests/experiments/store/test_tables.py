"""Old databases are taken up to date, newer ones are refused."""

from __future__ import annotations

import pytest
from sqlalchemy import inspect, update

from router.errors import ConfigError, StoreDown
from router.experiments.store import database, migrating, tables
from router.experiments.store.database import parse_url
from router.experiments.store.migrating import STEPS, VERSION, migrate
from router.experiments.store.sql_store import SqlStore
from tests.experiments.store.helpers import experiment


@pytest.fixture
def engine(url):
    found = database.make_engine(parse_url(url))
    yield found
    found.dispose()


def version_of(engine) -> int:
    with database.reading(engine) as conn:
        return conn.execute(tables.version.select()).scalar_one()


def test_a_new_database_is_made_whole_and_only_once(engine):
    for _ in range(2):
        with database.writing(engine) as conn:
            migrate(conn)
    assert version_of(engine) == VERSION
    assert set(inspect(engine).get_table_names()) == set(tables.metadata.tables)
    assert all(name.startswith("lora_router_") for name in tables.metadata.tables)


def test_every_step_is_there():
    assert sorted(STEPS) == list(range(2, VERSION + 1))


def test_steps_run_in_order_once(engine):
    done = []
    steps = {VERSION + i: lambda conn, i=i: done.append(i) for i in (1, 2, 3)}
    with database.writing(engine) as conn:
        migrate(conn)
    for newest in (VERSION + 2, VERSION + 2, VERSION + 3):
        with database.writing(engine) as conn:
            migrate(conn, steps, newest)
    assert done == [1, 2, 3]
    assert version_of(engine) == VERSION + 3


def test_a_step_that_fails_changes_nothing(engine):
    def fails(conn):
        conn.exec_driver_sql("CREATE TABLE half (n INTEGER)")
        raise RuntimeError("no")

    with database.writing(engine) as conn:
        migrate(conn)
    with pytest.raises(RuntimeError), database.writing(engine) as conn:
        migrate(conn, {VERSION + 1: fails}, VERSION + 1)
    assert version_of(engine) == VERSION
    assert "half" not in inspect(engine).get_table_names()


def test_a_newer_database_is_refused(url, engine):
    SqlStore(url).close()
    with database.writing(engine) as conn:
        conn.execute(update(tables.version).values(version=VERSION + 1))
    with pytest.raises(ConfigError, match=f"have version {VERSION + 1}, this program knows {VERSION}"):
        SqlStore(url)


def test_a_server_that_comes_back_newer_is_down(url, monkeypatch):
    store = SqlStore(url)
    store._ready = False  # as if it had not been reached at the start
    monkeypatch.setattr(migrating, "VERSION", 0)
    monkeypatch.setattr(migrate, "__defaults__", (STEPS, 0))
    with pytest.raises(StoreDown, match="newer lora-router"):
        store.list()
    store.close()


def test_other_tables_are_left_alone(url, engine):
    with database.writing(engine) as conn:
        conn.exec_driver_sql("CREATE TABLE experiments (mine INTEGER)")
    store = SqlStore(url)
    store.create(experiment())
    store.close()
    with database.reading(engine) as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM experiments").scalar_one() == 0
