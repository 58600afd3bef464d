"""Synthetic text-to-SQL rows: `python recipes/synthesis/sql_rows.py` writes data/code.mixed.jsonl.gz.

Made-up databases (schemas.txt) meet patterns of questions and queries (patterns.txt). 597 real rows over
16 databases teach a model those databases; these teach it to take names from whatever schema is given.
Real rows go in twice. Rows are the same for the same seed. Every query is compiled by SQLite on its schema.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PREFIX = "Write a SQLite query with ? for values.\nTables: "
VALUES = """North Star Oak Delta Harbour Miller Green 2019 Rosa Premium Lisbon Silver Kenya Type-B Amber Chen
    Basic Falcon Maria Urban West Classic River Anders Gold Night Ohio Atlas Mixed Summer"""


@dataclass(frozen=True)
class Column:
    """`kind`: i id, n number, t text that names the thing, c category, d date."""

    name: str
    kind: str
    phrase: str


@dataclass(frozen=True)
class Table:
    """A table and what its rows are called."""

    name: str
    singular: str
    plural: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Pattern:
    """A query and the ways to ask for it."""

    query: str
    questions: tuple[str, ...]


def read_databases() -> list[list[Table]]:
    """The databases of schemas.txt."""
    return [[_table(line) for line in block] for block in _blocks("schemas.txt")]


def read_patterns() -> list[Pattern]:
    """The patterns of patterns.txt."""
    return [Pattern(block[0], tuple(block[1:])) for block in _blocks("patterns.txt")]


def _blocks(name: str) -> Iterator[list[str]]:
    lines = (HERE / name).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    for block in text.strip().split("\n\n"):
        yield block.splitlines()


def _table(line: str) -> Table:
    name, rest = line.split(" = ", 1)
    things, columns = rest.split(" : ", 1)
    singular, plural = things.split(" / ")
    made = (Column(*column.split(" ", 2)) for column in columns.split("; "))
    return Table(name, singular, plural, tuple(made))


def fill(pattern: Pattern, table: Table, rng: random.Random) -> tuple[str, str] | None:
    """A question and its query on `table`; None if the table has no column of a kind that is needed."""
    columns = _choose(pattern, table, rng)
    if columns is None:
        return None
    query = pattern.query.replace("{T}", table.name)
    question = rng.choice(pattern.questions).replace("{s}", table.singular).replace("{p}", table.plural)
    for slot, column in columns.items():
        query = query.replace(f"{{{slot}}}", column.name)
        question = question.replace(f"{{{slot}}}s", _plural(column.phrase)).replace(
            f"{{{slot}}}", column.phrase
        )
    first, second = rng.sample(VALUES.split(), 2)
    question = question.replace("{v}", first).replace("{w}", second)
    question = re.sub(r"\{#\}", lambda _: str(rng.choice((2, 3, 5, 10, 40, 100, 1500, 1980, 2010))), question)
    return _vary(question, rng), query


def _choose(pattern: Pattern, table: Table, rng: random.Random) -> dict[str, Column] | None:
    kinds = {"n": "n", "m": "n", "t": "t", "u": "t", "c": "c", "k": "c", "d": "d", "i": "i", "f": "i"}
    ids = [column for column in table.columns if column.kind == "i"]
    left = list(table.columns)
    chosen: dict[str, Column] = {}
    for slot in sorted(set(re.findall(r"\{([a-z])\}", pattern.query)) & set(kinds)):
        pool = {"i": ids[:1], "f": ids[1:]}.get(slot) or [c for c in left if c.kind == kinds[slot]]
        if not pool or (slot == "f" and not ids[1:]):
            return None
        chosen[slot] = rng.choice(pool)
        left.remove(chosen[slot])
    return chosen


def _plural(phrase: str) -> str:
    if " of " in phrase or " in " in phrase:
        return phrase
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        return phrase[:-1] + "ies"
    return phrase + ("es" if phrase.endswith(("s", "x", "ch", "sh")) else "s")


def _vary(question: str, rng: random.Random) -> str:
    """A few marks of how people type."""
    roll = rng.random()
    if roll < 0.06:
        return question[0].lower() + question[1:]
    if roll < 0.10:
        return question.rstrip("?.")
    return question.replace("?", " ?", 1) if roll < 0.13 else question


def render(tables: list[Table], rng: random.Random) -> tuple[str, dict[str, list[str]]]:
    """The schema as the prompt shows it, in a random order of tables, and as data."""
    shown = rng.sample(tables, len(tables))
    schema = {table.name: [column.name for column in table.columns] for table in shown}
    return "; ".join(f"{name}({', '.join(columns)})" for name, columns in schema.items()), schema


def make(count: int, seed: int) -> list[dict[str, object]]:
    """`count` distinct rows."""
    rng = random.Random(seed)
    databases, patterns = read_databases(), read_patterns()
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < count:
        database = rng.choice(databases)
        others = [t for other in rng.sample(databases, 2) if other is not database for t in other]
        extra = list(rng.sample(others, min(len(others), rng.choice((0, 0, 1, 2)))))
        tables = [*database, *(t for t in extra if t.name not in {own.name for own in database})]
        filled = fill(rng.choice(patterns), rng.choice(database), rng)
        if filled is None:
            continue
        shown, schema = render(tables, rng)
        question, query = filled
        _compile(schema, query)
        prompt = f"{PREFIX}{shown}\nQuestion: {question}"
        rows[prompt] = {
            "prompt": prompt,
            "response": query,
            "group": f"synthetic|{query}",
            "source": "synthetic",
            "schema": schema,
        }
    return list(rows.values())


def _compile(schema: dict[str, list[str]], query: str) -> None:
    connection = sqlite3.connect(":memory:")
    for name, columns in schema.items():
        connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    connection.execute(f"EXPLAIN {query}", [1] * query.count("?"))
    connection.close()


def main() -> None:
    """Write the training rows: the real ones and the synthetic ones, mixed by the seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    data = HERE.parent / "data"
    real = gzip.decompress((data / "code.train.jsonl.gz").read_bytes()).decode().splitlines()
    made = [json.dumps(row, ensure_ascii=False) for row in make(args.rows, args.seed)]
    lines = [*real, *real, *made]
    random.Random(args.seed).shuffle(lines)
    file = data / "code.mixed.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))
    print(f"{file}: twice {len(real)} real and {len(made)} synthetic rows")


if __name__ == "__main__":
    main()
