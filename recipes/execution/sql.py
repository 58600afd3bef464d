"""Execution accuracy of SQL answers: same result as the gold query on tables of random rows.

After the test suites of Zhong et al. 2020 (https://aclanthology.org/2020.emnlp-main.29): one database
lets wrong queries pass by chance, several made to tell queries apart hardly do.
"""

from __future__ import annotations

import random
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import permutations, product
from typing import Any

from .column_order import Schema

Rows = list[tuple[Any, ...]]  # a result
Tables = Mapping[str, list[tuple[int, ...]]]  # rows of every table
Values = tuple[int | str, ...]  # for the `?` of a query

# How a gold query is told from others.
CASES = 8  # each a filling and values for the placeholders
FEWEST_CASES = 4
FILLINGS = 40  # tried to get them
BINDINGS = 6  # tried on each, two of them kept
REORDERED = 4  # most placeholders whose order may differ: they have no names

# What tables are filled with.
SHUFFLES = 3
ROWS = (8, 20)
DISTINCT = (4, 7)  # rows that are then repeated once, twice, three times, …

# What a query may take, and what is found in its text.
STEPS = 500_000  # of SQLite's virtual machine: an honest query on these tables takes some hundreds
LONGEST = 1_000_000  # bytes of any value
TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|\d+\.\d+|\w+|<=|>=|!=|<>|==|\|\||\S"""
)
STATEMENT = re.compile(r"\bselect\b.*?(?=;|```|\n\s*\n|\Z)", re.IGNORECASE | re.DOTALL)


# -- whether a query does what the gold query does


@dataclass(frozen=True, slots=True)
class Case:
    """A database, values for the placeholders, and the gold query's result."""

    database: Database
    values: Values
    result: Rows


class QueryJudge:
    """A gold query with the cases that tell other queries from it."""

    def __init__(self, schema: Schema, gold: str, columns: Sequence[int] | None = None) -> None:
        """`columns`: places of the gold's in the order demanded, None for any.

        Raises QueryFailed if `gold` does not run, or has no definite result.
        """
        self._ordered, self._count, self._columns = is_ordered(gold), placeholders(gold), columns
        telling: list[Case] = []
        dull: list[Case] = []  # nothing found; a few of them too, they tell AND from OR
        for case in _cases(schema, gold, self._ordered):
            (telling if _tells(case.result) else dull).append(case)
            if len(telling) == CASES:
                break
        self.cases = telling + dull[: 2 if telling else CASES]
        if len(self.cases) < FEWEST_CASES:
            raise QueryFailed("its result hangs on the order in which rows were stored")

    def accepts(self, sql: str) -> bool:
        """Same result in all cases: columns in the order demanded, rows in any unless the gold sorts them."""
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
        return same_result(case.result, rows, self._ordered, self._columns)


def same_result(gold: Rows, rows: Rows, ordered: bool, columns: Sequence[int] | None = None) -> bool:
    """Equal as tables, with the gold's columns in an order or in any; one selected twice counts once."""
    wanted = gold if columns is None else [tuple(row[place] for place in columns) for row in gold]
    ours, theirs = _columns(wanted), _columns(rows)
    if len(gold) != len(rows) or len(ours) != len(theirs):
        return False
    if columns is not None:
        return ours == theirs if ordered else _bag(ours) == _bag(theirs)
    if ordered:
        return set(ours) == set(theirs)
    bags = [Counter(column) for column in ours]
    fitting = ([column for column in theirs if Counter(column) == bag] for bag in bags)
    orders = (order for order in product(*fitting) if len(set(order)) == len(order))
    return any(_bag(order) == _bag(ours) for order in orders)


def _bag(columns: Sequence[tuple[object, ...]]) -> Counter[tuple[object, ...]]:
    return Counter(zip(*columns, strict=True))


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


# -- values for the `?` of a query, taken from the tables so that something is found


class Kind(Enum):
    """What a placeholder stands for."""

    COUNT = "a small number"
    VALUE = "a value of a column"
    PATTERN = "a part of a value of a column"


@dataclass(frozen=True, slots=True)
class Slot:
    """A placeholder; `table` and `column` are places in the schema and in a row."""

    kind: Kind
    table: str = ""
    column: int = 0


def slots(sql: str, schema: Schema) -> list[Slot]:
    """What each `?` of a query is compared with: the column or count that stands before it."""
    words = tokens(sql)
    named = [(table, columns) for table, columns in schema if table.lower() in words] or list(schema)
    known = {name.lower(): (table, place) for table, names in named[::-1] for place, name in enumerate(names)}
    return [_slot(words[:place], known) for place, word in enumerate(words) if word == "?"]


def _slot(before: Sequence[str], known: dict[str, tuple[str, int]]) -> Slot:
    kind = Kind.PATTERN if before[-1:] in (["like"], ["glob"]) else Kind.VALUE
    words = list(before)
    while words:
        word = words.pop()
        if word in known:
            # In count(DISTINCT x) > ? the count is what is compared.
            counted = words[-2:] == ["count", "("] or words[-3:] == ["count", "(", "distinct"]
            return Slot(Kind.COUNT) if counted else Slot(kind, *known[word])
        if word in ("limit", "offset", "count", "where", "having"):
            break
    return Slot(Kind.COUNT)


def bind(found: Sequence[Slot], tables: Tables, draw: random.Random, together: bool) -> Values:
    """A value for every slot; `together`: all of one row, as conditions joined by AND need it."""
    row = draw.random()
    return tuple(_value(slot, tables, draw, row if together else draw.random()) for slot in found)


def _value(slot: Slot, tables: Tables, draw: random.Random, row: float) -> int | str:
    if slot.kind is Kind.COUNT:
        return draw.randint(1, 3)
    rows = tables[slot.table]
    value = rows[int(row * len(rows))][slot.column]
    return value if slot.kind is Kind.VALUE else f"%{str(value)[draw.randrange(2)]}%"


# -- random rows for the tables of a schema, made so that different queries give different results


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


# -- a database in memory that answers queries and nothing else


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


# -- as much of a query as is needed to find statements, placeholders and literals


def tokens(sql: str) -> list[str]:
    """Tokens in lower case, names without their quotes."""
    return [_bare(token) if token[0] in '"`[' else token.lower() for token in TOKEN.findall(sql)]


def same_text(answer: str, gold: str) -> bool:
    """Token by token, whatever the case."""
    return tokens(answer.strip().removesuffix(";")) == tokens(gold.strip().removesuffix(";"))


def placeholders(sql: str) -> int:
    """How many `?` stand in a query."""
    return tokens(sql).count("?")


def is_ordered(sql: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY."""
    depth = 0
    for word in tokens(sql):
        depth += (word == "(") - (word == ")")
        if depth == 0 and word == "order":
            return True
    return False


def first_select(answer: str) -> str:
    """The first SELECT statement anywhere in an answer, or nothing."""
    found = STATEMENT.search(answer)
    return found[0].strip() if found else ""


def without_literals(sql: str, schema: Schema) -> str:
    """Numbers and texts become `?`; a text in double quotes is one unless the schema knows the name."""
    names = {name.lower() for table, columns in schema for name in (table, *columns)}

    def blanked(found: re.Match[str]) -> str:
        token = found[0]
        text = token[0] == "'" or (token[0] == '"' and _bare(token) not in names)
        return "?" if text or re.fullmatch(r"\d+(\.\d+)?", token) else token

    return TOKEN.sub(blanked, sql)


def _bare(token: str) -> str:
    return token[1:-1].lower()
