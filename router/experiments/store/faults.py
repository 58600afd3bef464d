"""A database's errors as ours: down for now, set up wrongly, or a defect that is nobody's to hide."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from router.errors import ConfigError, StoreDown
from router.experiments.store.url import shown

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


@contextmanager
def translated(url: URL, starting: bool = False) -> Iterator[None]:
    """Raises StoreDown, or at the start ConfigError where waiting will not help. Else what was raised."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreDown(f"the store {shown(url)}: all connections are busy", RETRY_SECONDS) from error
    except DBAPIError as error:
        told, wrong = _told(error)
        if told is None:
            raise
        text = f"the store {shown(url)}: {told}"
        raise (ConfigError(text) if wrong and starting else StoreDown(text, RETRY_SECONDS)) from error
    except SQLAlchemyError as error:
        if getattr(error, "connection_invalidated", False):
            raise StoreDown(f"the store {shown(url)}: the connection broke", RETRY_SECONDS) from error
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
