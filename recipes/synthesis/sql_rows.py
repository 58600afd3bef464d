"""Synthetic text-to-SQL rows: `python recipes/synthesis/sql_rows.py` writes data/code.mixed.jsonl.gz.

Made-up databases (schemas.txt) meet patterns of questions and queries (patterns.txt). 597 real rows over
16 databases teach a model those databases; these teach it to take names from whatever schema is given.
Real rows go in twice. Rows are the same for the same seed. Every query is compiled by SQLite on its schema
and selects its columns in the question's order where that has one; real rows are put into it, for theirs is
arbitrary.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1]))
from recipes.execution.column_order import in_asked_order, question_of  # noqa: E402

PREFIX = "Write a SQLite query with ? for values.\nTables: "
VALUES = """North Star Oak Delta Harbour Miller Green 2019 Rosa Premium Lisbon Silver Kenya Type-B Amber Chen
    Basic Falcon Maria Urban West Classic River Anders Gold Night Ohio Atlas Mixed Summer Port_Elgin
    Central_Asia Old_Mill Timo_Berg B12 Jazz PG-13 Active open M full_time La_Paz Ivory_Coast 1998
    Grey_Heron"""
PARTICIPLES = "lost claimed won bought spent needed sold late added built painted"
ROWS = 3_800


@dataclass(frozen=True)
class Column:
    """`kind`: i id, n number, t text that names the thing, c category, d date; `phrase` may be `a|b`."""

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


def fill(
    pattern: Pattern, table: Table, rng: random.Random, database: Sequence[Table] = ()
) -> tuple[str, str] | None:
    """A question and its query on `table`; None if a column or another table that is needed is not there."""
    columns, related = _choose(pattern, table, rng), _related(pattern, table, database, rng)
    if columns is None or related is None:
        return None
    query = pattern.query.replace("{T}", table.name).replace("{R}", related.name)
    question = rng.choice(pattern.questions).replace("{s}", table.singular).replace("{p}", table.plural)
    question = question.replace("{x}", related.singular).replace("{y}", related.plural)
    for slot, column in columns.items():
        phrase = rng.choice(column.phrase.split("|"))
        query = query.replace(f"{{{slot}}}", column.name)
        question = question.replace(f"{{{slot}}}s", _plural(phrase)).replace(f"{{{slot}}}", phrase)
    first, second = (value.replace("_", " ") for value in rng.sample(VALUES.split(), 2))
    question = question.replace("{v}", first).replace("{w}", second)
    question = re.sub(r"\{#\}", lambda _: str(rng.choice((2, 3, 5, 10, 40, 100, 1500, 1980, 2010))), question)
    return _vary(question, rng), query


def _related(pattern: Pattern, table: Table, database: Sequence[Table], rng: random.Random) -> Table | None:
    """A table that holds the id of this one; this one itself for patterns that need none."""
    if "{R}" not in pattern.query:
        return table
    key = next((column.name for column in table.columns if column.kind == "i"), "")
    holders = [other for other in database if other != table and key in {c.name for c in other.columns}]
    return rng.choice(holders) if holders else None


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
    first, _, rest = phrase.partition(" ")
    if rest in PARTICIPLES.split():
        return f"{_plural(first)} {rest}"
    if re.search(r" (of|in|per) |[^sui]s$", phrase):  # "number of seats", "hours", "details"
        return phrase
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        return phrase[:-1] + "ies"
    return phrase + ("es" if phrase.endswith(("s", "x", "ch", "sh")) else "s")


def _vary(question: str, rng: random.Random) -> str:
    """Articles put right, and a few marks of how people type."""
    question = re.sub(r"\b([Aa])(?= [aeio])", r"\1n", question)
    roll = rng.random()
    if roll < 0.06:
        return question[0].lower() + question[1:]
    if roll < 0.10:
        return question.rstrip("?.")
    if roll < 0.13:
        return question.replace("?", " ?", 1)
    if roll < 0.16:
        return question.replace(", ", " , ")
    return "Please " + question[0].lower() + question[1:] if roll < 0.18 and question[-1] == "." else question


def render(tables: list[Table], rng: random.Random) -> tuple[str, dict[str, list[str]]]:
    """The schema as the prompt shows it, in a random order of tables, and as data."""
    shown = rng.sample(tables, len(tables))
    schema = {table.name: [column.name for column in table.columns] for table in shown}
    return "; ".join(f"{name}({', '.join(columns)})" for name, columns in schema.items()), schema


def make(count: int, seed: int) -> list[dict[str, object]]:
    """`count` distinct rows."""
    rng = random.Random(seed)
    databases, patterns = read_databases(), read_patterns()
    weights = [len(pattern.questions) for pattern in patterns]
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < count:
        database = rng.choice(databases)
        others = [t for other in rng.sample(databases, 2) if other is not database for t in other]
        extra = list(rng.sample(others, min(len(others), rng.choice((0, 0, 1, 2)))))
        tables = [*database, *(t for t in extra if t.name not in {own.name for own in database})]
        filled = fill(rng.choices(patterns, weights)[0], rng.choice(database), rng, database)
        if filled is None:
            continue
        shown, schema = render(tables, rng)
        question, query = filled
        query = in_asked_order(question, query, list(schema.items()))
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


def ordered(line: str) -> str:
    """A line of real data, its query's columns in the question's order."""
    row = json.loads(line)
    tables = list(row["schema"].items())
    row["response"] = in_asked_order(question_of(row["prompt"]), row["response"], tables)
    return json.dumps(row, ensure_ascii=False)


def _compile(schema: dict[str, list[str]], query: str) -> None:
    connection = sqlite3.connect(":memory:")
    for name, columns in schema.items():
        connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    connection.execute(f"EXPLAIN {query}", [1] * query.count("?"))
    connection.close()


def main() -> None:
    """Write the training rows: the real ones and the synthetic ones, mixed by the seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    data = HERE.parent / "data"
    lines = gzip.decompress((data / "code.train.jsonl.gz").read_bytes()).decode().splitlines()
    real = [ordered(line) for line in lines]
    made = [json.dumps(row, ensure_ascii=False) for row in make(args.rows, args.seed)]
    mixed = [*real, *real, *made]
    random.Random(args.seed).shuffle(mixed)
    file = data / "code.mixed.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(mixed).encode() + b"\n", mtime=0))
    print(f"{file}: twice {len(real)} real and {len(made)} synthetic rows")


if __name__ == "__main__":
    main()
