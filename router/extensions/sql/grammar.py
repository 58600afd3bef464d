"""A Lark grammar of the SELECT statements over given tables.

Each table has rules of its own, so that the columns before FROM belong to the table behind it: a query that
the grammar lets through compiles. It names no table and no column but those given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from router.extensions.sql.schema import Tables

FUNCTIONS = ("avg", "max", "min", "sum")  # and count
COMPARISONS = ("=", ">", "<", ">=", "<=", "!=")
COMPARISON = '(COMPARED value | " BETWEEN " value " AND " value)'
MOST = 12  # columns, conditions or keys in a row


def select_grammar(tables: Tables) -> str:
    """Queries of one table each, with subqueries of one column; values are `?`, numbers or strings."""
    rules = [
        f"start: {' | '.join(f'q{i}' for i in range(len(tables)))}",
        f"sub: {' | '.join(f's{i}' for i in range(len(tables)))}",
        "value: VALUE | STRING",
        r"VALUE: /\?|-?[0-9]{1,18}(\.[0-9]{1,9})?/",
        r"STRING: /'([^'\n]|''){0,200}'/",
        f"FUNCTION: {_any(f'{name}(' for name in FUNCTIONS)}",
        f"COMPARED: {_any(f' {sign} ' for sign in COMPARISONS)}",
    ]
    for i, (table, columns) in enumerate(tables.items()):
        rules += _of_table(str(i), table, columns)
    return "\n".join(rules)


def _of_table(i: str, table: str, columns: Iterable[str]) -> list[str]:
    column, total = f"c{i}", f"a{i}"
    either = f"({column} | {total})"
    tests = _row(f"p{i}", '(" AND " | " OR ")')
    return [
        f'q{i}: "SELECT " ("DISTINCT ")? ("*" | {_row(either)}) rest{i}',
        f's{i}: "SELECT " ("DISTINCT ")? {either} rest{i}',
        f"rest{i}: from{i} (by{i} | order{i})",
        f'from{i}: {json.dumps(f" FROM {table}")} (" WHERE " {tests})?',
        f'by{i}: " GROUP BY " {_row(column)} (" HAVING " {total} {COMPARISON})? {_ordered(either)}',
        f"order{i}: {_ordered(column)}",
        f'p{i}: {column} ({COMPARISON} | COMPARED ({column} | "(" sub ")") | (" NOT")? " LIKE " value'
        f' | (" NOT")? " IN (" (sub | {_row("value")}) ")" | " IS" (" NOT")? " NULL")',
        f'{total}: "count(" ("*" | ("DISTINCT ")? {column}) ")" | FUNCTION ("DISTINCT ")? {column} ")"',
        f"{column}: {_any(columns)}",
    ]


def _ordered(by: str) -> str:
    """The end of a query: its order, and how many rows."""
    key = f'{by} (" ASC" | " DESC")?'
    return f'(" ORDER BY " {_row(f"({key})")})? (" LIMIT " VALUE)?'


def _any(texts: Iterable[str]) -> str:
    return " | ".join(json.dumps(text) for text in texts)


def _row(rule: str, between: str = '", "') -> str:
    return f"{rule} ({between} {rule}){{0,{MOST - 1}}}"
