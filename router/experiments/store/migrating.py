"""A database of an older version is taken up to the newest, step by step; a newer one is refused.

A server brings its own database up to date when it opens it, in one transaction, on both databases. Steps
are plain functions rather than Alembic's, so there is no second tool or folder of scripts to ship. They
change tables by name, since `tables.py` may have gone on; sums are made anew after the last of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, delete, insert, inspect, select

from router.errors import ConfigError
from router.experiments.store import tables
from router.experiments.store.bulk import bulk_for
from router.experiments.store.rebuilding import rebuild_all
from router.experiments.store.series import Phases
from router.experiments.store.session import Session
from router.experiments.store.tables import PREFIX, version

log = logging.getLogger(__name__)


def _to_second(conn: Connection) -> None:
    """Third powers, when an outcome came, segments of units, and units of pairs."""
    number = "DOUBLE PRECISION" if conn.dialect.name == "postgresql" else "DOUBLE"
    added = [
        ("units", "segments", "TEXT", "''"),
        ("pairs", "unit", "TEXT", "''"),
        ("outcomes", "came", number, "0"),
    ]
    added += [("sums", f"c{i}", number, "0") for i in range(20)]
    for table, column, kind, default in added:
        conn.exec_driver_sql(
            f"ALTER TABLE {PREFIX}{table} ADD COLUMN {column} {kind} NOT NULL DEFAULT {default}"
        )
    tables.segment_values.create(conn, checkfirst=True)
    conn.exec_driver_sql(f"DROP INDEX IF EXISTS {PREFIX}pairs_result")


Steps = Mapping[int, Callable[[Connection], None]]
STEPS: Steps = {2: _to_second}
"""Version -> what makes it out of the one before."""
VERSION = 2
SUMS_SINCE = 2
"""Sums of versions before this one lack something: they are made anew."""


def migrate(conn: Connection, steps: Steps = STEPS, newest: int = VERSION) -> None:
    """Bring the tables to the newest version. The connection is the only writer: two servers that open
    one database at once come one after the other. Raises ConfigError if it is newer than this program."""
    there = _version(conn)
    if there is None:
        tables.metadata.create_all(conn)
    else:
        _refuse_newer(there, newest)
        for number in range(there, newest):
            log.warning("the tables of experiments are taken from version %d to %d", number, number + 1)
            steps[number + 1](conn)
    if there is not None and there < SUMS_SINCE:
        bulk = bulk_for(conn.dialect.name)
        rebuild_all(Session(conn, bulk, Phases(bulk)))
    if there != newest:
        conn.execute(delete(version))
        conn.execute(insert(version).values(version=newest))


def check_version(conn: Connection) -> None:
    """Raises ConfigError if the tables are not there, or are of another version."""
    there = _version(conn)
    if there is None:
        raise ConfigError("there is no such database of experiments: it has no tables of lora-router")
    _refuse_newer(there, VERSION)
    if there < VERSION:
        raise ConfigError(
            f"the store's tables have version {there}, this program reads {VERSION}: start the server of "
            "this lora-router once, which takes them up to date"
        )


def _refuse_newer(there: int, newest: int) -> None:
    if there > newest:
        raise ConfigError(
            f"the store's tables have version {there}, this program knows {newest}: they were written by a "
            "newer lora-router; update this one, or name another database"
        )


def _version(conn: Connection) -> int | None:
    """None: the tables are not there."""
    if not inspect(conn).has_table(version.name):
        return None
    return conn.execute(select(version.c.version)).scalar_one_or_none()
