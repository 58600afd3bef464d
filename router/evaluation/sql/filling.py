"""Random rows for the tables of a schema, made so that different queries give different results."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache

from router.evaluation.sql.database import Database
from router.training.data import Schema

Tables = Mapping[str, list[tuple[int, ...]]]  # rows of every table
SHUFFLES = 3
ROWS = (8, 20)
DISTINCT = (4, 7)  # rows that are then repeated once, twice, three times, …


class Filling:
    """One filling, and its rows in other orders: a query whose result differs between them is unclear."""

    def __init__(self, schema: Schema, seed: int) -> None:
        """Numbers only. Even seeds: few values a column. Odd ones: whole rows repeated, no counts tied."""
        draw = random.Random(seed)
        make = _repeated if seed % 2 else _crowded
        self.tables: Tables = {table: make(draw, len(columns)) for table, columns in schema}
        shuffled = (
            {table: draw.sample(rows, len(rows)) for table, rows in self.tables.items()}
            for _ in range(SHUFFLES)
        )
        orders = [self.tables, {table: rows[::-1] for table, rows in self.tables.items()}, *shuffled]
        self.databases = [Database(schema, rows) for rows in orders]


@lru_cache(maxsize=2048)
def fill(schema: Schema, seed: int) -> Filling:
    """The filling of a schema by a seed. Raises QueryFailed for a schema that is not SQLite's."""
    return Filling(schema, seed)


def _crowded(draw: random.Random, width: int) -> list[tuple[int, ...]]:
    length = draw.randint(*ROWS)
    return list(zip(*(_column(draw, length, draw.randint(3, 6)) for _ in range(width)), strict=True))


def _repeated(draw: random.Random, width: int) -> list[tuple[int, ...]]:
    length = draw.randint(*DISTINCT)
    columns = [_column(draw, length, draw.choice([3, length, length])) for _ in range(width)]
    times = draw.sample(range(1, length + 1), length)
    rows = [row for row, count in zip(zip(*columns, strict=True), times, strict=True) for _ in range(count)]
    return draw.sample(rows, len(rows))


def _column(draw: random.Random, length: int, values: int) -> list[int]:
    pool = draw.sample(range(10, 100), min(values, length))
    column = pool + [draw.choice(pool) for _ in range(length - len(pool))]
    return draw.sample(column, length)
