"""The database under the store: its URL, its connections, its errors in our words, and rows in bulk.

A URL as people write it is made exact, or refused with what to do. A commit is durable when it returns,
and nothing waits without end. An error says that the database is down for now, or set up wrongly; a defect
is nobody's to hide.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    Text,
    any_,
    bindparam,
    cast,
    column,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.schema import Table

from router.errors import ConfigError, StoreDown, install_extra

log = logging.getLogger(__name__)
EXAMPLES = (
    "sqlite:////var/lib/lora-router/extensions/experiments.db or postgresql://user:password@host/database"
)
POSTGRES = "postgresql+psycopg"
DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": POSTGRES,
    "postgres": POSTGRES,
    POSTGRES: POSTGRES,
}
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
    "secure_delete=ON",  # what is deleted is overwritten with zeros
)
READ_PRAGMAS = (f"busy_timeout={int(WAIT_SECONDS * 1000)}", "query_only=ON")
POSTGRES_SETTINGS = (
    f"SET lock_timeout = {int(WAIT_SECONDS * 1000)}",
    f"SET statement_timeout = {int(2 * ANSWER_SECONDS * 1000)}",
    "SET default_transaction_isolation = 'read committed'",  # what the last writer did is seen after its lock
    "SET idle_in_transaction_session_timeout = 30000",  # a server that was stopped lets the others go on
    # A database may be set up to lose the last commits; here what was acknowledged stays.
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off'",
)
RETRY_SECONDS = 1.0
# SQLSTATE classes (PostgreSQL manual, appendix A) of what time or an operator can mend
_PASSING = ("08", "25", "40", "53", "55", "57", "58", "XX")
_NO_RIGHTS = ("42501", "3F000")  # the second: of no schema that is on the search path
# A refused connection has no SQLSTATE in libpq, so it is known by its words: in other languages it is one
# that may pass, as in the log.
_REFUSED = {
    r"authentication failed|pg_hba\.conf|no password supplied|role .* (does not exist|is not permitted)": (
        "check user and password in the URL, and pg_hba.conf"
    ),
    r"database .* does not exist": "create the database: createdb NAME",
}
_SQLITE = {
    "SQLITE_FULL": "the disk is full: free some space",
    "SQLITE_READONLY": "the file or its folder is read-only for this user: change its owner or mode",
    "SQLITE_CANTOPEN": "the file cannot be opened: check that its folder is there and may be written",
    "SQLITE_PERM": "the file may not be opened by this user: change its owner or mode",
    "SQLITE_BUSY": "another process has been writing for too long",
    "SQLITE_LOCKED": "another process has been writing for too long",
    "SQLITE_IOERR": "reading or writing failed: check the disk; SQLite needs a local one",
    "SQLITE_CORRUPT": "the file is damaged: stop the server, then `sqlite3 FILE .recover | sqlite3 NEW`",
    "SQLITE_NOTADB": "the file is no SQLite database: name another one, or move it away",
}
_WRONG = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_CORRUPT", "SQLITE_NOTADB")


def parse_url(text: str, must_exist: bool = False) -> URL:
    """The URL with its driver; the folder of a SQLite file is made, or the file must be there.

    Raises ConfigError.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"the store's URL cannot be read; it looks like {EXAMPLES}") from error
    if url.drivername not in DRIVERS:
        known = ", ".join(DRIVERS)
        raise ConfigError(f"the store's URL begins with {url.drivername!r}; known are {known}: {EXAMPLES}")
    if DRIVERS[url.drivername] == "sqlite":
        return _file_url(url, must_exist)
    return _server_url(url)


def shown_url(url: URL) -> str:
    """As it may be logged: without the password."""
    return url.render_as_string(hide_password=True)


def _file_url(url: URL, must_exist: bool) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.host:
        raise ConfigError(
            "the store's URL names no file, and what is kept in memory is lost: "
            "write sqlite:///FILE for a relative path, sqlite:////FOLDER/FILE for an absolute one"
        )
    path = Path(url.database).expanduser().absolute()
    try:
        is_folder = path.is_dir()
        if must_exist and not path.exists():
            raise ConfigError(f"{path}: there is no such database of experiments")
        if not must_exist:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the store's folder {path.parent} cannot be made or entered: {error.strerror}"
        ) from error
    if is_folder:
        raise ConfigError(f"the store {path} is a folder; name a file in it, such as {path}/experiments.db")
    return url.set(drivername="sqlite", database=str(path))


def _server_url(url: URL) -> URL:
    shown = shown_url(url)
    if find_spec("psycopg") is None:
        raise ConfigError(
            f"the store at {shown} needs the Python package psycopg: {install_extra('postgres')}"
        )
    if not url.database:
        raise ConfigError(f"the store's URL {shown} names no database: write postgresql://HOST/DATABASE")
    if not url.username:
        raise ConfigError(f"the store's URL {shown} names no user: write postgresql://USER@HOST/DATABASE")
    import psycopg.conninfo

    try:
        psycopg.conninfo.make_conninfo(**dict.fromkeys(url.query, ""))
    except psycopg.ProgrammingError as error:
        raise ConfigError(
            f"the store's URL {shown}: {_line(error)}; a socket is postgresql://USER@/DATABASE?host=/FOLDER"
        ) from error
    return url.set(drivername=POSTGRES)


def make_engine(url: URL, read_only: bool = False) -> Engine:
    """An engine; nothing is connected yet. `read_only` makes no file, and changes none."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, read_only)
    engine = create_engine(
        url,
        # Nothing is kept prepared: tables may change under it while a newer server opens the database.
        connect_args={"connect_timeout": int(CONNECT_SECONDS), "prepare_threshold": None},
        pool_pre_ping=True,  # after an outage the first call works again
        pool_timeout=CONNECT_SECONDS,
        pool_recycle=1800,
    )
    event.listen(engine, "connect", _set_up_postgres)
    event.listen(engine, "do_connect", _connect_postgres)
    _close_late_returns(engine)
    return engine


def _sqlite_engine(url: URL, read_only: bool) -> Engine:
    arguments = {"timeout": WAIT_SECONDS, "check_same_thread": False}
    if read_only:  # "rw": with "ro" the last to leave could not put the log away
        url = url.set(database=f"file:{quote(url.database or '')}", query={"mode": "rw", "uri": "true"})
    engine = create_engine(url, connect_args=arguments, pool_timeout=CONNECT_SECONDS)
    event.listen(engine, "connect", partial(_set_up_sqlite, READ_PRAGMAS if read_only else SQLITE_PRAGMAS))
    event.listen(engine, "begin", _begin_sqlite)
    _close_late_returns(engine)
    return engine


def _close_late_returns(engine: Engine) -> None:
    """Close a connection that a thread returns after `dispose`, which closes only those that are idle.

    The pool that it belongs to still exists, so its id is not that of the new one.
    """

    def note(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info["pool"] = id(engine.pool)

    def returned(_connection: object, record: ConnectionPoolEntry) -> None:
        if record.info.get("pool") != id(engine.pool):
            record.invalidate()

    event.listen(engine, "connect", note)
    event.listen(engine, "checkin", returned)


def _set_up_sqlite(pragmas: Iterable[str], connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's own BEGIN comes too late to be a lock
    until = time.monotonic() + WAIT_SECONDS
    for pragma in pragmas:
        # SQLite refuses a change of the journal at once, without its busy timeout, where another connection
        # is about to write: two servers that open a new database together.
        while True:
            try:
                connection.execute(f"PRAGMA {pragma}")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)


def _begin_sqlite(conn: Connection) -> None:
    options = conn.get_execution_options()
    if not options.get("alone"):
        conn.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")


def rebuild(engine: Engine) -> None:
    """Write a SQLite database anew, from its rows alone. Nothing else writes meanwhile.

    `secure_delete` is not enough: where SQLite moves a row to another page, the old place keeps its bytes.
    PostgreSQL's database stays as it is.
    """
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(alone=True) as conn:
            conn.exec_driver_sql("VACUUM")


def empty_log(engine: Engine) -> bool:
    """Move what is in SQLite's write-ahead log into the database file, and cut the log to no bytes.

    False: another connection reads an earlier state or writes, so that some of the log stays. It does not
    wait for that one: call it again later. PostgreSQL's log stays as it is; then the result is True.
    """
    if engine.dialect.name != "sqlite":
        return True
    with engine.connect().execution_options(alone=True) as conn:
        conn.exec_driver_sql("PRAGMA busy_timeout=0")
        try:
            busy = conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
        finally:
            conn.exec_driver_sql(f"PRAGMA {SQLITE_PRAGMAS[0]}")
    return not busy


def with_patience(
    steps: Generator[Any, Any, Any], seconds: float, leave: Callable[[], Exception]
) -> Generator[Any, Any, Any]:
    """The same steps of the driver, which would wait without end for a server that sends nothing.

    Raises what `leave` returns after `seconds` of silence.
    """
    last = time.monotonic()
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted  # nothing, every tenth of a second while the server is silent
            now = time.monotonic()
            if not ready and now - last > seconds:
                raise leave()
            last = now if ready else last
            wanted = steps.send(ready)
    except StopIteration as done:
        return done.value


def _connect_postgres(_dialect: Any, _record: object, arguments: Any, named: dict[str, Any]) -> Any:
    return _impatient().connect(*arguments, **named)


@cache
def _impatient() -> Any:
    """A connection that is closed when the server says nothing for `ANSWER_SECONDS`: the driver would wait
    without end for one that was stopped."""
    import psycopg

    class ImpatientConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
            return super().wait(with_patience(gen, ANSWER_SECONDS, self._leave), *arguments, **named)

        def _leave(self) -> Exception:
            self.pgconn.finish()
            return psycopg.OperationalError(f"no answer within {ANSWER_SECONDS:g} s")

        def __del__(self, *arguments: Any) -> None:
            # The pool lets go of a connection whose caller was interrupted; the driver would warn of that.
            if hasattr(self, "pgconn") and not self.closed:
                self.pgconn.finish()

    return ImpatientConnection


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


@contextmanager
def translated(url: URL, starting: bool = False) -> Iterator[None]:
    """Raises StoreDown, or at the start ConfigError where waiting will not help. Else what was raised."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreDown(f"the store {shown_url(url)}: all connections are busy", RETRY_SECONDS) from error
    except DBAPIError as error:
        problem, wrong = _problem_of(error)
        if problem is None:
            raise
        text = f"the store {shown_url(url)}: {problem}"
        raise (ConfigError(text) if wrong and starting else StoreDown(text, RETRY_SECONDS)) from error
    except SQLAlchemyError as error:
        if getattr(error, "connection_invalidated", False):
            raise StoreDown(f"the store {shown_url(url)}: the connection broke", RETRY_SECONDS) from error
        raise


def _problem_of(error: DBAPIError) -> tuple[str | None, bool]:
    """What to say, and whether the set-up is wrong; None for what is a defect."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return _sqlite_problem(cause)
    state, text = getattr(cause, "sqlstate", None) or "", _line(cause)
    if remedy := _remedy(state, text):
        return f"{text}: {remedy}", True
    passing = state.startswith(_PASSING) or error.connection_invalidated
    kinds = {kind.__name__ for kind in type(cause).__mro__}  # a connection that took too long has its own
    if passing or (not state and kinds & {"InterfaceError", "OperationalError"}):
        return f"cannot be reached or written now: {text}", False
    return None, False


def _remedy(state: str, text: str) -> str:
    """What to do about a wrong set-up; empty if it is none."""
    if state in _NO_RIGHTS:
        return "grant the user CREATE and USAGE on the schema"
    if state and not state.startswith(("28", "3D")):
        return ""
    return next((remedy for words, remedy in _REFUSED.items() if re.search(words, text)), "")


def _sqlite_problem(cause: sqlite3.Error) -> tuple[str | None, bool]:
    name = getattr(cause, "sqlite_errorname", "") or ""
    kind = next((start for start in _SQLITE if name.startswith(start)), None)
    if kind is None:
        return None, False
    return f"{_SQLITE[kind]} ({cause})", kind in _WRONG


def _line(cause: BaseException | None) -> str:
    """The first message of the server, or all of the driver's, in one line."""
    message = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause)
    return " ".join(message.split())


class Clash(Enum):
    """What becomes of a row whose primary key is there."""

    KEEP = "keep"
    REPLACE = "replace"
    ADD = "add"


class Bulk(ABC):
    """Many rows in one statement: what SQLAlchemy has no common words for."""

    @abstractmethod
    def among(self, found: Column[Any], keys: Collection[Any]) -> ColumnElement[bool]:
        """Whether a column's value is one of `keys`; as many as you like."""

    @abstractmethod
    def _execute(self, conn: Connection, table: Table, clash: Clash, rows: Sequence[Sequence[Any]]) -> None:
        """Rows as the table has its columns, none twice."""

    def write(self, conn: Connection, table: Table, rows: Iterable[Sequence[Any]], clash: Clash) -> None:
        """Insert rows: each has a value for every column, in the table's order; no key is there twice."""
        if found := list(rows):
            self._execute(conn, table, clash, found)


class SqliteBulk(Bulk):
    """Rows one by one, which is fast in C; keys as one JSON text."""

    def among(self, found: Column[Any], keys: Collection[Any]) -> ColumnElement[bool]:
        """By json_each."""
        listed = func.json_each(json.dumps(list(keys))).table_valued("value")
        return found.in_(select(listed.c.value))

    def _execute(self, conn: Connection, table: Table, clash: Clash, rows: Sequence[Sequence[Any]]) -> None:
        conn.exec_driver_sql(_sqlite_text(table, clash), [tuple(row) for row in rows])


class PostgresBulk(Bulk):
    """Rows and keys as one JSON text each: one round trip. Its numbers are read back as the same doubles."""

    def among(self, found: Column[Any], keys: Collection[Any]) -> ColumnElement[bool]:
        """By ANY of an array made there: drivers in Python take long to write one."""
        text = cast(bindparam(None, json.dumps(list(keys)), Text), JSON)
        listed = func.json_array_elements_text(text).table_valued("value").render_derived(name="keys")
        return found == any_(func.array(select(cast(listed.c.value, found.type)).scalar_subquery()))

    def _execute(self, conn: Connection, table: Table, clash: Clash, rows: Sequence[Sequence[Any]]) -> None:
        names = [c.name for c in table.columns]
        text = json.dumps([dict(zip(names, row, strict=True)) for row in rows], allow_nan=False)
        conn.execute(_postgres_statement(table, clash), {"rows": text})


def bulk_for(dialect: str) -> Bulk:
    """The way of a database by SQLAlchemy's name of it."""
    return PostgresBulk() if dialect == "postgresql" else SqliteBulk()


@cache
def _sqlite_text(table: Table, clash: Clash) -> str:
    statement = sqlite.insert(table)
    statement = _clashing(statement, statement.excluded, table, clash)
    names = [c.name for c in table.columns]
    return str(statement.compile(dialect=sqlite.dialect(), column_keys=names))


@cache
def _postgres_statement(table: Table, clash: Clash) -> Any:
    rows = cast(bindparam("rows", type_=Text), JSON)
    listed = func.json_to_recordset(rows).table_valued(*(column(c.name, c.type) for c in table.columns))
    records = listed.render_derived(name="r", with_types=True)
    statement = postgresql.insert(table).from_select(table.columns.keys(), select(*records.c))
    return _clashing(statement, statement.excluded, table, clash)


def _clashing(statement: Any, excluded: Any, table: Table, clash: Clash) -> Any:
    keys = [c.name for c in table.primary_key]
    others = [c.name for c in table.columns if c.name not in keys]
    if clash is Clash.KEEP:
        return statement.on_conflict_do_nothing()
    adds = clash is Clash.ADD
    new = {name: table.c[name] + excluded[name] if adds else excluded[name] for name in others}
    return statement.on_conflict_do_update(index_elements=keys, set_=new)
