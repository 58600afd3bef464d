"""Many rows and many keys in one statement, on both databases."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Connection, Double, Integer, MetaData, Table, Text, select

from router.experiments.store import database
from router.experiments.store.database import Bulk, Clash, bulk_for, parse_url

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
