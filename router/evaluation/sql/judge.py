"""Whether a query does what the gold query does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

from router.errors import ConfigError
from router.evaluation.sql.binding import Values, bind, slots
from router.evaluation.sql.database import Database, QueryFailed, Rows
from router.evaluation.sql.filling import fill
from router.evaluation.sql.tokens import is_ordered, placeholders
from router.training.data import Row, Schema

CASES = 8  # each a filling and a binding
FEWEST = 4
FILLINGS = 40  # tried to get them
BINDINGS = 6  # tried on each, two of them kept
REORDERED = 4  # most placeholders whose order may differ: they have no names


@dataclass(frozen=True, slots=True)
class Case:
    """A database, values for the placeholders, and the gold query's result."""

    database: Database
    values: Values
    result: Rows


class QueryJudge:
    """A gold query with the cases that tell other queries from it."""

    def __init__(self, schema: Schema, gold: str) -> None:
        """Raises QueryFailed if `gold` does not run, or has no definite result."""
        self._ordered, self._count = is_ordered(gold), placeholders(gold)
        telling: list[Case] = []
        dull: list[Case] = []  # nothing found; a few of them too, they tell AND from OR
        for case in _cases(schema, gold, self._ordered):
            (telling if _tells(case.result) else dull).append(case)
            if len(telling) == CASES:
                break
        self.cases = telling + dull[: 2 if telling else CASES]
        if len(self.cases) < FEWEST:
            raise QueryFailed("its result hangs on the order in which rows were stored")

    def accepts(self, sql: str) -> bool:
        """Same result in all cases: columns in any order, rows in any order unless the gold sorts them."""
        if placeholders(sql) != self._count:
            return False
        orders = permutations(range(self._count)) if self._count <= REORDERED else [range(self._count)]
        return any(all(self._same(case, sql, tuple(order)) for case in self.cases) for order in orders)

    def compiles(self, sql: str) -> bool:
        """Whether it is one SELECT statement that runs."""
        try:
            self.cases[0].database.rows(sql, (1,) * placeholders(sql))
        except QueryFailed:
            return False
        return True

    def _same(self, case: Case, sql: str, order: tuple[int, ...]) -> bool:
        try:
            rows = case.database.rows(sql, [case.values[place] for place in order])
        except QueryFailed:
            return False
        return same_result(case.result, rows, self._ordered)


@lru_cache(maxsize=4096)
def query_judge(row: Row) -> QueryJudge:
    """The judge of a data row. Raises ConfigError, naming the row, if its gold query cannot judge."""
    if not row.schema:
        raise ConfigError(f"{row.place} has no 'schema': the metric execution needs tables and columns")
    try:
        return QueryJudge(row.schema, row.response)
    except QueryFailed as error:
        raise ConfigError(f"{row.place}: the gold query cannot be judged by execution: {error}") from error


def same_result(gold: Rows, rows: Rows, ordered: bool) -> bool:
    """Equal as tables whose columns have no order; a column selected twice counts once."""
    ours, theirs = _columns(gold), _columns(rows)
    if len(gold) != len(rows) or len(ours) != len(theirs):
        return False
    if ordered:
        return set(ours) == set(theirs)
    wanted = Counter(zip(*ours, strict=True))
    bags = [Counter(column) for column in ours]
    fitting = ([column for column in theirs if Counter(column) == bag] for bag in bags)
    orders = (order for order in product(*fitting) if len(set(order)) == len(order))
    return any(Counter(zip(*order, strict=True)) == wanted for order in orders)


def _columns(rows: Rows) -> list[tuple[object, ...]]:
    return list(dict.fromkeys(zip(*rows, strict=True)))


def _tells(rows: Rows) -> bool:
    return any(value not in (0, None) for row in rows for value in row)


def _cases(schema: Schema, gold: str, ordered: bool) -> Iterator[Case]:
    wanted = slots(gold, schema)
    for seed in range(FILLINGS):
        filling, draw, seen = fill(schema, seed), random.Random(seed), set[Values]()
        for attempt in range(BINDINGS):
            values = bind(wanted, filling.tables, draw, together=attempt % 2 == 0)
            if values in seen or len(seen) == 2:
                continue
            first, *others = (database.rows(gold, values) for database in filling.databases)
            if all(_alike(first, other, ordered) for other in others):
                seen.add(values)
                yield Case(filling.databases[0], values, first)


def _alike(one: Rows, other: Rows, ordered: bool) -> bool:
    return one == other if ordered else Counter(one) == Counter(other)
