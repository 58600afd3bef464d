"""Is the database still the one that was opened, with all that was acknowledged?

A file may be deleted or replaced while connections still write into the old one, and a server's database may
be put back from a backup. One row has an id, made with the tables, and the number of writing transactions:
another id is another database, a smaller number an older copy. Of a file the path must lead to what is open.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from router.errors import StoreReplaced
from router.experiments.store.tables import identity
from router.shared.database import shown_url

log = logging.getLogger(__name__)
NO_TABLE = "42P01"  # SQLSTATE
WAYS_OUT = "put back the one that was here, or restart the server to go on with this one"


def give_identity(conn: Connection) -> None:
    """To a database that has none."""
    conn.execute(insert(identity).values(id=secrets.token_hex(16), writes=0))


@dataclass(frozen=True, slots=True)
class Opened:
    """Which database it is, and how many writing transactions it had when this server saw it last."""

    id: str
    writes: int


class DatabaseWatch:
    """Call it with what is read and written. Raises StoreReplaced, and goes on when the database is back."""

    def __init__(self, url: URL) -> None:
        self._shown = shown_url(url)
        self._file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        self._opened: Opened | None = None
        self._place: Place | None = None  # of the file that is open

    @property
    def seen(self) -> Opened | None:
        """What was seen last; take it before a transaction begins that is checked."""
        return self._opened

    def open(self, conn: Connection) -> None:
        """Remember the database of a first connection; a later one must be to the same."""
        found = self._row(conn)
        if self._opened is not None:
            self._compare(found, self._opened)
        self._opened = found
        if self._file is not None:
            self._place = _place(self._file)

    def check(self, conn: Connection, seen: Opened | None) -> None:
        """Of a transaction that began when `seen` was the last."""
        if seen is not None:
            self._compare(self._row(conn), seen)

    def write(self, conn: Connection) -> Opened:
        """Count a transaction of the only writer; `wrote` follows when it is committed."""
        try:
            found = conn.execute(
                update(identity)
                .values(writes=identity.c.writes + 1)
                .returning(identity.c.id, identity.c.writes)
            ).one_or_none()
        except DBAPIError as error:
            self._refuse_foreign(error)
            raise
        now = Opened(*found) if found else None
        if self._opened is not None:
            self._compare(now and Opened(now.id, now.writes - 1), self._opened)
        if now is None:
            raise StoreReplaced(f"the store {self._shown} has lost its identity: restore a backup")
        return now

    def wrote(self, now: Opened) -> None:
        """It is committed: acknowledge it, unless the file is another now."""
        self._opened = now
        if self.moved():
            raise self.gone()

    def moved(self) -> bool:
        """Whether the path leads no more to the file that is open."""
        return self._file is not None and self._place is not None and _place(self._file) != self._place

    def before(self) -> None:
        """Raises StoreReplaced where there is no file: to connect would make an empty one."""
        if self._opened is not None and self._file is not None and not self._file.exists():
            raise self.gone()

    def gone(self) -> StoreReplaced:
        """What to raise where the path leads no more to what is open."""
        if self._file is not None and not self._file.exists():
            return StoreReplaced(
                f"the store {self._shown} was deleted under the server: put it back, or restart the server "
                "to begin with an empty one"
            )
        return StoreReplaced(f"the store {self._shown} was replaced under the server: {WAYS_OUT}")

    def _other(self) -> StoreReplaced:
        return StoreReplaced(f"the store {self._shown} is another database now: {WAYS_OUT}")

    def _row(self, conn: Connection) -> Opened | None:
        try:
            found = conn.execute(select(identity.c.id, identity.c.writes)).one_or_none()
        except DBAPIError as error:
            self._refuse_foreign(error)
            raise
        return Opened(*found) if found else None

    def _refuse_foreign(self, error: DBAPIError) -> None:
        """Raises StoreReplaced where the table is missing, which was there."""
        missing = "no such table" in str(error.orig) or getattr(error.orig, "sqlstate", "") == NO_TABLE
        if missing and self._opened is not None:
            raise self._other() from error

    def _compare(self, found: Opened | None, seen: Opened) -> None:
        if found is None or found.id != seen.id:
            raise self._other()
        if found.writes < seen.writes:
            what = "is an older copy now, without what was acknowledged since"
            raise StoreReplaced(f"the store {self._shown} {what}: {WAYS_OUT}")


def close_moved(engine: Engine) -> None:
    """Before the connections to a file that was moved are closed: write its log into it, since SQLite leaves
    the log at the old path, and reads it into whatever file is opened there next."""
    try:
        with closing(engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:  # also where no connection was left, and none can be made
        log.warning("the log of a database that was replaced could not be written into it: %s", error)


Place: TypeAlias = tuple[int, int]


def _place(path: Path) -> Place | None:
    """Device and inode; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
