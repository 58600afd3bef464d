"""A database in memory that answers queries and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from router.training.data import Schema

Rows = list[tuple[Any, ...]]
STEPS = 500_000  # of SQLite's virtual machine: an honest query on these tables takes some hundreds
LONGEST = 1_000_000  # bytes of any value


class QueryFailed(Exception):
    """The text is not one SELECT statement, does not compile, or takes too long."""


class Database:
    """Tables with rows. Cut off by steps, not by time, so that every machine judges alike."""

    def __init__(self, schema: Schema, rows: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Raises QueryFailed if SQLite does not take the schema."""
        self._connection = sqlite3.connect(":memory:")
        try:
            for table, columns in schema:
                self._connection.execute(
                    f"CREATE TABLE {_quoted(table)} ({', '.join(map(_quoted, columns))})"
                )
                filled = f"INSERT INTO {_quoted(table)} VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
                self._connection.executemany(filled, rows[table])
            self._connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise QueryFailed(f"the schema is not SQLite's: {error}") from error
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)

    def rows(self, sql: str, values: Sequence[Any]) -> Rows:
        """The result, numbers rounded to 9 digits. Raises QueryFailed."""
        if not sql.lstrip().lower().startswith(("select", "with")):
            raise QueryFailed("not a SELECT statement")
        budget = iter(range(STEPS // 1000))
        self._connection.set_progress_handler(lambda: next(budget, None) is None, 1000)
        try:
            found = self._connection.execute(sql, tuple(values)).fetchall()
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as error:
            raise QueryFailed(str(error)) from error
        return [tuple(_rounded(value) for value in row) for row in found]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _rounded(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) else value
