"""Many rows in one statement, on both databases: what SQLAlchemy has no common words for.

SQLite takes rows one by one in C; PostgreSQL gets them as one JSON parameter, so that a batch is one round
trip whatever the driver. JSON numbers are read back as the very same doubles.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from functools import cache
from typing import Any

from sqlalchemy import JSON, Column, Connection, Text, any_, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.schema import Table


class Clash(Enum):
    """What becomes of a row whose primary key is there."""

    KEEP = "keep"
    REPLACE = "replace"
    ADD = "add"


class Bulk(ABC):
    """One database's way."""

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
    """Rows by executemany, keys as one JSON text."""

    def among(self, found: Column[Any], keys: Collection[Any]) -> ColumnElement[bool]:
        """By json_each."""
        listed = func.json_each(json.dumps(list(keys))).table_valued("value")
        return found.in_(select(listed.c.value))

    def _execute(self, conn: Connection, table: Table, clash: Clash, rows: Sequence[Sequence[Any]]) -> None:
        conn.exec_driver_sql(_sqlite_text(table, clash), [tuple(row) for row in rows])


class PostgresBulk(Bulk):
    """Rows and keys as one JSON text each."""

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
