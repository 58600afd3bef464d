"""URLs, connections and errors in our words; many rows and many keys in one statement; on both databases."""

from __future__ import annotations

import math
import os
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Double, Integer, MetaData, Table, Text, event, insert, select
from sqlalchemy.exc import DBAPIError

from router.errors import ConfigError, StoreDown
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.store import ExperimentStore
from router.shared import database
from router.shared.database import Bulk, Clash, bulk_for, parse_url
from tests.extensions.experiments.store.conftest import empty
from tests.extensions.experiments.store.helpers import act, experiment


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "cannot be read; it looks like sqlite:////var"),
        ("experiments.db", "cannot be read"),
        ("sqlit:///x.db", "'sqlit'; known are sqlite"),
        ("mysql://u@h/d", "known are"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://folder/x.db", "names no file"),
        ("sqlite:////proc/nowhere/x.db", "/proc/nowhere cannot be made or entered"),
        ("sqlite:////tmp", "is a folder; name a file in it"),
        ("postgresql://u@h", "names no database"),
        ("postgresql://h/d", "names no user"),
        ("postgresql+asyncpg://u@h/d", "known are"),
        ("postgresql://u@/d?unix_sock=/tmp/.s.PGSQL.5432", "unix_sock.*; a socket is .*host=/FOLDER"),
    ],
)
def test_urls_with_a_mistake(url, told):
    with pytest.raises(ConfigError, match=told):
        ExperimentStore(url)


def test_a_missing_driver_says_what_to_install(monkeypatch):
    monkeypatch.setattr("router.shared.database.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"needs the Python package psycopg: pip install -e '\.\[postgres\]' in the checkout",
    ):
        ExperimentStore("postgresql://u:secret@h/d")


@pytest.mark.slow
def test_a_server_that_says_nothing_is_left(server, monkeypatch):
    """The connection is closed, and the next call has a new one."""
    store = ExperimentStore(empty(server))
    monkeypatch.setattr("router.shared.database.ANSWER_SECONDS", 0.3)
    with pytest.raises(StoreDown, match=r"no answer within 0\.3 s"), store.reading() as conn:
        conn.exec_driver_sql("SELECT pg_sleep(5)")
    assert store.list() == ()
    store.close()


def test_the_password_is_not_told(server):
    port = server.url().rsplit(":", 1)[1].split("/")[0]
    with pytest.raises(ConfigError, match="database") as caught:
        ExperimentStore(f"postgresql://router:secret@127.0.0.1:{port}/nowhere")
    assert "secret" not in caught.value.message
    assert "createdb" in caught.value.message


def test_a_wrong_user_is_a_setting(server):
    with pytest.raises(ConfigError, match="check user and password"):
        ExperimentStore(server.url().replace("router@", "nobody@"))


def test_nobody_answers():
    store = ExperimentStore("postgresql://u@127.0.0.1:1/d")
    with pytest.raises(StoreDown, match="cannot be reached"):
        store.list()
    store.close()


@pytest.mark.slow
def test_a_server_that_takes_connections_and_says_nothing_is_down(monkeypatch):
    """As one that was stopped: the system takes connections for it."""
    monkeypatch.setattr("router.shared.database.CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = ExperimentStore(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d")
        with pytest.raises(StoreDown, match="cannot be reached"):
            store.list()
        store.close()


def test_folders_are_made(tmp_path):
    ExperimentStore(f"sqlite:///{tmp_path}/a/b/x.db").close()
    assert (tmp_path / "a/b/x.db").exists()


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "x.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="no SQLite database: name another one"):
        ExperimentStore(f"sqlite:///{tmp_path}/x.db")


def test_a_damaged_file(tmp_path):
    path, store = tmp_path / "x.db", ExperimentStore(f"sqlite:///{tmp_path}/x.db")
    for i in range(50):
        store.create(experiment(f"x{i}"))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(ConfigError, match="is damaged"):
        ExperimentStore(f"sqlite:///{path}")


def test_a_full_disk_loses_nothing_and_passes(tmp_path):
    store = ExperimentStore(f"sqlite:///{tmp_path}/x.db")
    store.close()
    engine = store._engine
    event.listen(engine, "connect", _almost_full)
    with pytest.raises(StoreDown, match="disk is full: free some space"):
        _fill(store)
    kept = len(store.trail("x"))
    event.remove(engine, "connect", _almost_full)
    store.close()
    store.audit(act(time=1e9))
    assert len(store.trail("x")) == kept + 1
    store.close()


def _fill(store: ExperimentStore) -> None:
    for i in range(2000):
        store.audit(act(what="x" * 1000, time=i))


def _almost_full(connection, _record) -> None:
    connection.execute("PRAGMA max_page_count=120")


@pytest.mark.parametrize(
    ("mode", "told"), [(0o555, "is there and may be written"), (0o200, "made or entered: Permission denied")]
)
def test_a_folder_that_may_not_be_written(mode, told):
    """Root may write everywhere, so it is tried as another user."""
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which only its owner may enter
        Path(folder).chmod(mode)
        assert told in _as_nobody(Path(folder) / "x.db")
        Path(folder).chmod(0o700)


def _as_nobody(path: Path) -> str:
    """The error of opening a store, in a child that is not root."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        text = "opened"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            ExperimentStore(f"sqlite:///{path}")
        except BaseException as error:
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as found:
        return found.read()


def test_another_process_that_writes_for_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("router.shared.database.WAIT_SECONDS", 0.1)
    monkeypatch.setattr("router.shared.database.SQLITE_PRAGMAS", ("busy_timeout=100",))
    store = ExperimentStore(f"sqlite:///{tmp_path}/x.db")
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreDown, match="another process has been writing"):
        store.salt("holdout")
    other.execute("ROLLBACK")
    other.close()
    assert store.salt("holdout")
    store.close()


@pytest.mark.slow
def test_another_server_that_is_stopped_while_it_writes(server, monkeypatch):
    """Others fail for a while; then the database ends its transaction, and they go on."""
    url = empty(server)
    stopped = ExperimentStore(url)
    quick = ("SET lock_timeout = 200", "SET idle_in_transaction_session_timeout = 1000")
    monkeypatch.setattr("router.shared.database.POSTGRES_SETTINGS", quick)
    stopped.close()
    other = ExperimentStore(url)
    with pytest.raises(StoreDown, match="idle-in-transaction timeout"):
        _stop_while_writing(stopped, other)
    assert other.salt("half") != "never written"
    for store in (stopped, other):
        store.close()


def _stop_while_writing(stopped: ExperimentStore, other: ExperimentStore) -> None:
    with stopped._writing() as conn:
        conn.execute(insert(tables.salts).values(purpose="half", salt="never written"))
        with pytest.raises(StoreDown, match=r"cannot be reached or written now: .*lock timeout"):
            other.salt("holdout")
        time.sleep(1.2)
        assert other.salt("holdout")


class ServerSays(Exception):
    """As psycopg tells what the server said."""

    def __init__(self, state: str) -> None:
        super().__init__("no")
        self.sqlstate = state


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("57P01", StoreDown),
        ("53100", StoreDown),
        ("55P03", StoreDown),
        ("25006", StoreDown),
        ("42501", ConfigError),
        ("42P01", DBAPIError),
    ],
)
def test_what_a_server_says(state, kind):
    error = DBAPIError("SELECT", {}, ServerSays(state))
    with pytest.raises(kind), database.translated(parse_url("postgresql://u@h/d"), starting=True):
        raise error


def test_a_defect_is_not_hidden(sql_store):
    with pytest.raises(DBAPIError), sql_store._writing() as conn:
        conn.execute(insert(tables.salts).values(purpose="p"))


TABLE = Table(
    "things", MetaData(), Column("key", Text, primary_key=True), Column("value", Double), Column("n", Integer)
)
ODD = ["a'b", 'quote"', "back\\slash", "{brace}", "ключ", "\U0001f600", "", " blank ", "null", "a,b", "?%s:x"]
NUMBERS = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2**53 + 1.0, math.pi, 1e22]


@pytest.fixture
def conn(url) -> Iterator[Connection]:
    engine = database.make_engine(parse_url(url))
    TABLE.metadata.create_all(engine)
    with database.writing(engine) as found:
        yield found
    engine.dispose()


@pytest.fixture
def bulk(conn) -> Bulk:
    return bulk_for(conn.dialect.name)


def rows(conn: Connection) -> dict[str, tuple[float, int]]:
    return {key: (value, n) for key, value, n in conn.execute(select(TABLE))}


def test_any_text_and_any_double_come_back_the_same(conn, bulk):
    made = {key: (NUMBERS[i % len(NUMBERS)], i) for i, key in enumerate(ODD)}
    bulk.write(conn, TABLE, ((key, *rest) for key, rest in made.items()), Clash.KEEP)
    assert rows(conn) == made
    found = conn.execute(select(TABLE.c.key).where(bulk.among(TABLE.c.key, ODD))).scalars().all()
    assert sorted(found) == sorted(ODD)


def test_only_those_that_are_asked_for(conn, bulk):
    bulk.write(conn, TABLE, [(str(i), 1.0, i) for i in range(5000)], Clash.KEEP)
    for column, keys in ((TABLE.c.key, ["7", "4999", "5000"]), (TABLE.c.n, [7, 4999, 5000])):
        found = conn.execute(select(TABLE.c.n).where(bulk.among(column, keys))).scalars().all()
        assert sorted(found) == [7, 4999]
    for keys in ([], set()):
        assert conn.execute(select(TABLE.c.n).where(bulk.among(TABLE.c.key, keys))).all() == []
    everything = bulk.among(TABLE.c.key, {str(i) for i in range(5000)})
    assert len(conn.execute(select(TABLE.c.n).where(everything)).all()) == 5000


@pytest.mark.parametrize(
    ("clash", "value", "n"), [(Clash.KEEP, 1.5, 1), (Clash.REPLACE, 2.5, 2), (Clash.ADD, 4.0, 3)]
)
def test_rows_that_are_there(conn, bulk, clash, value, n):
    bulk.write(conn, TABLE, [("a", 1.5, 1)], clash)
    bulk.write(conn, TABLE, [("a", 2.5, 2), ("b", 0.0, 0)], clash)
    assert rows(conn) == {"a": (value, n), "b": (0.0, 0)}


def test_no_rows_are_no_statement(conn, bulk):
    bulk.write(conn, TABLE, iter(()), Clash.ADD)
    assert rows(conn) == {}


def test_a_new_database_is_opened_beside_one_who_is_about_to_write(tmp_path):
    """SQLite itself refuses the change of the journal at once there."""
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    leaves = threading.Timer(0.2, other.rollback)
    leaves.start()
    engine = database.make_engine(parse_url(f"sqlite:///{tmp_path}/x.db"))
    with database.writing(engine) as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    leaves.join()
    other.close()
    engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_connection_that_is_returned_after_the_end_is_closed(kind, tmp_path, request):
    sqlite = f"sqlite:///{tmp_path}/x.db"
    store = ExperimentStore(sqlite if kind == "sqlite" else empty(request.getfixturevalue("server")))
    engine = store._engine
    with engine.connect() as lent:
        connection = lent.connection.dbapi_connection
        store.close()
    with pytest.raises(Exception, match="closed"):
        connection.cursor().execute("SELECT 1")
    with engine.connect() as lent:  # a later call has a new one, which is kept
        connection = lent.connection.dbapi_connection
    connection.cursor().execute("SELECT 1")
    store.close()
