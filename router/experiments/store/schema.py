"""The tables' versions. A new database is made whole; an old one is taken up step by step.

Steps are plain functions rather than Alembic's: a server brings its own database up to date when it opens
it, in one transaction, on both databases, and there is no second tool or folder of scripts to ship.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import Connection, delete, insert, inspect, select

from router.errors import ConfigError
from router.experiments.store.tables import metadata, version

STEPS: Mapping[int, Callable[[Connection], None]] = {}
"""Version -> what makes it out of the one before. `tables.py` says how the newest looks."""
VERSION = 1


def migrate(
    conn: Connection, steps: Mapping[int, Callable[[Connection], None]] = STEPS, newest: int = VERSION
) -> None:
    """Bring the tables to the newest version. The connection is the only writer: two servers that open
    one database at once come one after the other. Raises ConfigError if it is newer than this program."""
    there = _version(conn)
    if there is not None and there > newest:
        raise ConfigError(
            f"the store's tables have version {there}, this program knows {newest}: they were written by a "
            "newer lora-router; update this one, or name another database"
        )
    if there is None:
        metadata.create_all(conn)
    for number in range(newest if there is None else there, newest):
        steps[number + 1](conn)
    if there != newest:
        conn.execute(delete(version))
        conn.execute(insert(version).values(version=newest))


def _version(conn: Connection) -> int | None:
    """None: the tables are not there."""
    if not inspect(conn).has_table(version.name):
        return None
    return conn.execute(select(version.c.version)).scalar_one_or_none()
