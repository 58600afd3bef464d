"""The database under the store: its URL, its connections, and its errors in our words.

An URL as people write it is made exact, or refused with what to do. A commit is durable when it returns,
and nothing waits without end. An error says that the database is down for now, or set up wrongly; a defect
is nobody's to hide.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from router.errors import ConfigError, StoreDown

EXAMPLES = "sqlite:////var/lib/lora-router/experiments.db or postgresql://user:password@host/database"
DRIVERS = {
    "sqlite": ("sqlite", "sqlite3", ""),
    "sqlite+pysqlite": ("sqlite", "sqlite3", ""),
    "postgresql": ("postgresql+pg8000", "pg8000", "install lora-router[postgres]"),
    "postgres": ("postgresql+pg8000", "pg8000", "install lora-router[postgres]"),
    "postgresql+pg8000": ("postgresql+pg8000", "pg8000", "install lora-router[postgres]"),
    "postgresql+psycopg": ("postgresql+psycopg", "psycopg", "install psycopg[binary]"),
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
RETRY_SECONDS = 1.0
# SQLSTATE classes (PostgreSQL manual, appendix A) of what time or an operator can mend
_PASSING = ("08", "25", "40", "53", "55", "57", "58", "XX")
_SET_UP = {
    "28": "check user and password in the URL, and pg_hba.conf",
    "3D": "create the database: createdb NAME",
    "42501": "grant the user CREATE and USAGE on the schema",
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


READ_PRAGMAS = (f"busy_timeout={int(WAIT_SECONDS * 1000)}", "query_only=ON")


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
    driver, module, remedy = DRIVERS[url.drivername]
    if find_spec(module) is None:
        raise ConfigError(f"the store at {shown_url(url)} needs the Python package {module}: {remedy}")
    if driver != "sqlite":
        return _server_url(url.set(drivername=driver))
    return _file_url(url, must_exist)


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
    if not url.database:
        raise ConfigError(
            f"the store's URL {shown_url(url)} names no database: write postgresql://HOST/DATABASE"
        )
    if not url.username:
        raise ConfigError(
            f"the store's URL {shown_url(url)} names no user: write postgresql://USER@HOST/DATABASE"
        )
    return url


def make_engine(url: URL, read_only: bool = False) -> Engine:
    """An engine; nothing is connected yet. `read_only` makes no file, and changes none."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, read_only)
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


def _sqlite_engine(url: URL, read_only: bool) -> Engine:
    arguments = {"timeout": WAIT_SECONDS, "check_same_thread": False}
    if read_only:  # "rw": with "ro" the last to leave could not put the log away
        url = url.set(database=f"file:{quote(url.database or '')}", query={"mode": "rw", "uri": "true"})
    engine = create_engine(url, connect_args=arguments, pool_timeout=CONNECT_SECONDS)
    event.listen(engine, "connect", partial(_set_up_sqlite, READ_PRAGMAS if read_only else SQLITE_PRAGMAS))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(pragmas: Iterable[str], connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's own BEGIN comes too late to be a lock
    for pragma in pragmas:
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


@contextmanager
def translated(url: URL, starting: bool = False) -> Iterator[None]:
    """Raises StoreDown, or at the start ConfigError where waiting will not help. Else what was raised."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreDown(f"the store {shown_url(url)}: all connections are busy", RETRY_SECONDS) from error
    except DBAPIError as error:
        told, wrong = _told(error)
        if told is None:
            raise
        text = f"the store {shown_url(url)}: {told}"
        raise (ConfigError(text) if wrong and starting else StoreDown(text, RETRY_SECONDS)) from error
    except SQLAlchemyError as error:
        if getattr(error, "connection_invalidated", False):
            raise StoreDown(f"the store {shown_url(url)}: the connection broke", RETRY_SECONDS) from error
        raise


def _told(error: DBAPIError) -> tuple[str | None, bool]:
    """What to say, and whether the set-up is wrong; None for what is a defect."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return _told_sqlite(cause)
    state, text = _sqlstate(cause), _line(cause)
    for start, remedy in _SET_UP.items():
        if state.startswith(start):
            return f"{text}: {remedy}", True
    passing = state.startswith(_PASSING) or error.connection_invalidated
    if passing or (not state and type(cause).__name__ in ("InterfaceError", "OperationalError")):
        return f"cannot be reached or written now: {text}", False
    return None, False


def _told_sqlite(cause: sqlite3.Error) -> tuple[str | None, bool]:
    name = getattr(cause, "sqlite_errorname", "") or ""
    kind = next((start for start in _SQLITE if name.startswith(start)), None)
    if kind is None:
        return None, False
    return f"{_SQLITE[kind]} ({cause})", kind in _WRONG


def _sqlstate(cause: BaseException | None) -> str:
    """psycopg has an attribute, pg8000 the server's message as a mapping; empty where no server spoke."""
    if found := getattr(cause, "sqlstate", None):
        return str(found)
    fields = cause.args[0] if cause is not None and cause.args else None
    return str(fields.get("C", "")) if isinstance(fields, dict) else ""


def _line(cause: BaseException | None) -> str:
    fields = cause.args[0] if cause is not None and cause.args else ""
    text = fields.get("M", "") if isinstance(fields, dict) else str(fields)
    return " ".join(text.split())


def connect_pg8000(
    answer: float, dialect: Any, _record: object, arguments: Any, named: dict[str, Any]
) -> Any:
    """For SQLAlchemy's event `do_connect`: a connection whose socket is closed whatever happens.

    The driver says goodbye before it closes, which raises where the server is gone, and it leaves a socket
    open where the server refuses: outages would be told at length in the log, and leak until collected.
    Every answer of the server may take `answer` seconds.
    """
    driver = dialect.loaded_dbapi
    if named.get("unix_sock"):
        return driver.connect(*arguments, **named)
    rest = {**named}
    where, timeout = (rest.pop("host", "localhost"), rest.pop("port", 5432)), rest.pop("timeout", None)
    try:
        sock = socket.create_connection(where, timeout)
    except OSError as error:
        raise driver.InterfaceError(f"{where[0]}:{where[1]}: {error.strerror or error}") from error
    sock.settimeout(answer)
    try:
        return _closing(driver)(sock, *arguments, **rest)
    except BaseException:
        _close_socket(sock)
        raise


@cache
def _closing(driver: Any) -> Any:
    class Closing(driver.Connection):  # type: ignore[misc]
        def __init__(self, own: socket.socket, *arguments: Any, **named: Any) -> None:
            self.own = own  # before the driver begins to speak: it closes if that fails
            super().__init__(*arguments, sock=own, **named)

        def close(self) -> None:
            try:
                with suppress(driver.InterfaceError):
                    super().close()
            finally:
                _close_socket(self.own)

    return Closing


def _close_socket(sock: socket.socket) -> None:
    """Also where a stream still holds it."""
    handle = sock.detach()
    if handle >= 0:
        os.close(handle)
