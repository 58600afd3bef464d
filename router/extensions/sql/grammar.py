"""A Lark grammar of the SELECT statements over given tables.

Each table has rules of its own, so that the columns before FROM belong to the table behind it: a query that
the grammar lets through compiles. It names no table and no column but those given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from router.extensions.sql.schema import Tables

FUNCTIONS = ("avg", "max", "min", "sum")  # and count
COMPARISONS = ("=", ">", "<", ">=", "<=", "!=")
COMPARISON = '(COMPARED value | " BETWEEN " value " AND " value)'
MOST = 12  # columns, conditions or keys in a row
# Words that SQLite reads as a name only in quotes. Names from a list are not SQL yet.
_WORDS = """
    add all alter and as autoincrement between case cast check collate commit constraint create default
    deferrable delete distinct drop else escape except exists foreign from group having in index insert
    intersect into is isnull join limit not nothing notnull null on or order primary raise references
    returning select set table then to transaction union unique update using values when where
"""
RESERVED = frozenset(_WORDS.split())
_BARE = re.compile(r"[^\W\d][\w$]*")


def select_grammar(tables: Tables) -> str:
    """Queries of one table each, with subqueries of one column; values are `?`, numbers or strings."""
    rules = [
        f"start: {' | '.join(f'q{i}' for i in range(len(tables)))}",
        f"sub: {' | '.join(f's{i}' for i in range(len(tables)))}",
        "value: VALUE | STRING",
        r"VALUE: /\?|-?[0-9]{1,18}(\.[0-9]{1,9})?/",
        r"COUNT: /\?|[0-9]{1,18}/",
        r"STRING: /'([^'\n]|''){0,200}'/",
        f"FUNCTION: {_any(f'{name}(' for name in FUNCTIONS)}",
        f"COMPARED: {_any(f' {sign} ' for sign in COMPARISONS)}",
    ]
    for i, (table, columns) in enumerate(tables.items()):
        rules += _of_table(str(i), table, columns)
    return "\n".join(rules)


def readable(name: str) -> str:
    """A name as the prompt writes it, in quotes where SQLite could not read it.

    >>> [readable(name) for name in ("age", "[the day]", "group", "1st")]
    ['age', '[the day]', '"group"', '"1st"']
    """
    if name[0] in '"`[' or (_BARE.fullmatch(name) and name.lower() not in RESERVED):
        return name
    return '"' + name.replace('"', '""') + '"'


def _of_table(i: str, table: str, columns: Iterable[str]) -> list[str]:
    column, total = f"c{i}", f"a{i}"
    either = f"({column} | {total})"
    tests = _row(f"p{i}", '(" AND " | " OR ")')
    return [
        f'q{i}: "SELECT " ("DISTINCT ")? ("*" | {_row(either)}) rest{i}',
        f's{i}: "SELECT " ("DISTINCT ")? {either} rest{i}',
        f"rest{i}: from{i} (by{i} | order{i})",
        f'from{i}: {json.dumps(f" FROM {readable(table)}")} (" WHERE " {tests})?',
        f'by{i}: " GROUP BY " {_row(column)} (" HAVING " {total} {COMPARISON})? {_ordered(either)}',
        f"order{i}: {_ordered(column)}",
        f'p{i}: {column} ({COMPARISON} | COMPARED ({column} | "(" sub ")") | (" NOT")? " LIKE " value'
        f' | (" NOT")? " IN (" (sub | {_row("value")}) ")" | " IS" (" NOT")? " NULL")',
        f'{total}: "count(" ("*" | ("DISTINCT ")? {column}) ")" | FUNCTION ("DISTINCT ")? {column} ")"',
        f"{column}: {_any(map(readable, columns))}",
    ]


def _ordered(by: str) -> str:
    """The end of a query: its order, and how many rows."""
    key = f'{by} (" ASC" | " DESC")?'
    return f'(" ORDER BY " {_row(f"({key})")})? (" LIMIT " COUNT)?'


def _any(texts: Iterable[str]) -> str:
    return " | ".join(json.dumps(text) for text in texts)


def _row(rule: str, between: str = '", "') -> str:
    return f"{rule} ({between} {rule}){{0,{MOST - 1}}}"
