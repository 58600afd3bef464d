"""Connections: durable at every commit, and never waiting without end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from router.experiments.store.pg8000_sockets import connect_pg8000

CONNECT_SECONDS = 5.0
WAIT_SECONDS = 10.0  # for another writer
ANSWER_SECONDS = 15.0  # for each answer of a server
LOCK = 0x6C6F7261_726F7574  # this program's advisory lock in a PostgreSQL database
SQLITE_PRAGMAS = (
    f"busy_timeout={int(WAIT_SECONDS * 1000)}",
    "journal_mode=WAL",
    "synchronous=FULL",  # a commit is on disk when it returns, whatever happens to the process or the machine
    "foreign_keys=ON",
    "cache_size=-65536",  # KiB
    "wal_autocheckpoint=8000",  # pages: keys are random, and a page that many batches change is moved once
)
POSTGRES_SETTINGS = (
    f"SET lock_timeout = {int(WAIT_SECONDS * 1000)}",
    f"SET statement_timeout = {int(2 * ANSWER_SECONDS * 1000)}",
    "SET default_transaction_isolation = 'read committed'",  # what the last writer did is seen after its lock
    "SET idle_in_transaction_session_timeout = 30000",  # a server that was stopped lets the others go on
    # A database may be set up to lose the last commits; here what was acknowledged stays.
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off'",
)


def make_engine(url: URL) -> Engine:
    """An engine; nothing is connected yet."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    options = {
        "pg8000": {"timeout": CONNECT_SECONDS},
        "psycopg": {"connect_timeout": int(CONNECT_SECONDS)},
    }
    engine = create_engine(
        url,
        connect_args=options[url.get_driver_name()],
        pool_pre_ping=True,  # after an outage the first call works again
        pool_timeout=CONNECT_SECONDS,
        pool_recycle=1800,
    )
    event.listen(engine, "connect", _set_up_postgres)
    if url.get_driver_name() == "pg8000":
        event.listen(engine, "do_connect", partial(connect_pg8000, ANSWER_SECONDS))
    return engine


def _sqlite(url: URL) -> Engine:
    arguments = {"timeout": WAIT_SECONDS, "check_same_thread": False}
    engine = create_engine(url, connect_args=arguments, pool_timeout=CONNECT_SECONDS)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's own BEGIN comes too late to be a lock
    for pragma in SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("writes") else "BEGIN")


def _set_up_postgres(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for statement in POSTGRES_SETTINGS:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction with the database's one right to write; committed at the end."""
    with engine.connect().execution_options(writes=True) as conn, conn.begin():
        if engine.dialect.name == "postgresql":
            conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        yield conn


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state throughout."""
    with engine.connect() as conn, conn.begin():
        if engine.dialect.name == "postgresql":
            conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield conn
