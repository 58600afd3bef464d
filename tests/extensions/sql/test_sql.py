"""The template `sql`: which tables a prompt names, and what queries its grammar lets through."""

from __future__ import annotations

import gzip
import json
import random
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from router.engine.constrained.templates import NoSource
from router.extensions.sql import sql
from router.extensions.sql.grammar import RESERVED, select_grammar
from router.extensions.sql.schema import MAX_COLUMNS, MAX_DEFINITION, MAX_TABLES, Tables, tables_of
from router.types import Constraint
from tests.engine.constrained.driving import base, compiled, text_of, walked

_STRING = re.compile(r"'([^']|'')*'")
DATA = Path(__file__).parents[3] / "recipes" / "data"
PETS: Tables = {"pet": ("id", "name", "owner_id"), "owner": ("id", "town")}


@pytest.mark.parametrize(
    ("prompt", "tables"),
    [
        ("Tables: pet(id, name, owner_id); owner(id, town)\nQuestion: Who?", PETS),
        ("Schema:\npet(id, name, owner_id),\nowner(id, town)\n", PETS),
        ("Table: show(id, official_ratings_(millions))", {"show": ("id", "official_ratings_(millions)")}),
        (
            'create table if not exists main."order" (id INT, `the day` TEXT, CHECK (id > 0));\n'
            "CREATE TEMP TABLE t(a DECIMAL(8, 2) DEFAULT (1), FOREIGN KEY (a) REFERENCES x(y))",
            {'"order"': ("id", "`the day`"), "t": ("a",)},
        ),
        ("CREATE TABLE t (a TEXT DEFAULT 'x, b)' CHECK (a <> ','), c INT);", {"t": ("a", "c")}),
        (
            "CREATE TABLE t (-- who's first, x\n a INT, -- then (\n b /* c, d) */ INT,\n/* e, */ f INT);",
            {"t": ("a", "b", "f")},
        ),
        ('CREATE TABLE t ("a, b" INT, [c (d] INT, `--e` INT);', {"t": ('"a, b"', "[c (d]", "`--e`")}),
        (
            "CREATE TABLE t (key VARCHAR(20), value TEXT); CREATE TABLE u (a INT, KEY (a), key by_a (a))",
            {"t": ("key", "value"), "u": ("a",)},
        ),
        ("CREATE TABLE t (a INT, b TEXT DEFAULT 'open, c INT);", {}),
        ("Tables: first come, first served", {}),
        ("CREATE TABLE broken (id INT", {}),
        ("CREATE TABLE none ()", {}),
        ("What is a pet(id)?", {}),
    ],
)
def test_the_tables_of_a_prompt(prompt: str, tables: Tables) -> None:
    assert tables_of(prompt) == tables


def test_a_prompt_has_bounds() -> None:
    many = "\n".join(f"CREATE TABLE t{i} (a INT);" for i in range(MAX_TABLES + 1))
    assert len(tables_of(many)) == MAX_TABLES
    wide = f"CREATE TABLE t ({', '.join(f'c{i} INT' for i in range(1500))}); CREATE TABLE u (a INT);"
    assert sum(map(len, tables_of(wide).values())) <= MAX_COLUMNS
    assert tables_of("CREATE TABLE t (" * 10_000) == {}
    assert tables_of("CREATE TABLE t (" + "/*" * 100_000) == {}
    assert tables_of(f"Tables: t({'a, ' * MAX_DEFINITION})") == {}
    with pytest.raises(NoSource, match="CREATE TABLE"):
        sql("no tables")


def accepts(grammar: str, answer: str) -> bool:
    state = compiled(Constraint("grammar", grammar)).start()
    tokens = base().tokens.tokenize_str(answer)
    return state._matcher.try_consume_tokens(tokens) == len(tokens) and state._matcher.is_accepting()


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("SELECT name FROM pet", True),
        ("SELECT DISTINCT name, count(DISTINCT id) FROM pet GROUP BY name HAVING count(*) > 2", True),
        ("SELECT * FROM owner WHERE town = 'L''Aquila' OR id BETWEEN 1 AND -2.5", True),
        ("SELECT town FROM owner WHERE id NOT IN (SELECT owner_id FROM pet WHERE name LIKE ?)", True),
        ("SELECT name FROM pet GROUP BY name ORDER BY count(*) DESC, id ASC LIMIT 1", True),
        ("SELECT name FROM pet LIMIT 1.5", False),
        ("SELECT name FROM pet ORDER BY count(*) DESC", False),
        ("SELECT town FROM pet", False),
        ("SELECT name FROM pets", False),
        ("SELECT name FROM pet WHERE town = ?", False),
        ("SELECT nam FROM pet", False),
        ("SELECT name FROM pet; DROP TABLE pet", False),
        ("DROP TABLE pet", False),
    ],
)
def test_a_query_names_its_own_columns(query: str, fits: bool) -> None:
    assert accepts(select_grammar(PETS), query) is fits


def check_queries_compile(tables: Tables, database: sqlite3.Connection, seeds: int) -> None:
    """The whole ones among `seeds` random queries of the grammar compile in SQLite."""
    grammar, whole = compiled(Constraint("grammar", select_grammar(tables))), 0
    for seed in range(seeds):
        tokens, ended = walked(grammar, seed, most=200)
        if ended:
            query = text_of(tokens)
            whole += 1
            database.execute(f"EXPLAIN {query}", (1,) * _STRING.sub("", query).count("?"))
    assert whole > 20


def test_every_whole_query_compiles() -> None:
    tables = {**PETS, '"order"': ("id", "`the day`", "total")}
    with closing(sqlite3.connect(":memory:")) as database:
        for table, columns in tables.items():
            database.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        check_queries_compile(tables, database, seeds=80)


def test_names_that_sql_cannot_read_bare_are_quoted() -> None:
    tables = tables_of("Tables: select(from, By, 2a, g-h, rate_(%)); order(group)\nQuestion: how many?")
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute('CREATE TABLE "select" ("from", By, "2a", "g-h", "rate_(%)")')
        database.execute('CREATE TABLE "order" ("group")')
        check_queries_compile(tables, database, seeds=60)
    assert accepts(select_grammar(tables), 'SELECT "from", By FROM "select" WHERE "g-h" = ?')


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_reserved_word_is_no_name(name: str) -> None:
    with closing(sqlite3.connect(":memory:")) as database, pytest.raises(sqlite3.OperationalError):
        database.executescript(f"CREATE TABLE {name} ({name}); SELECT {name} FROM {name} WHERE {name} > 1")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_5000_whole_queries_compile_on_their_schemas() -> None:
    """Of random prompts, in both forms; SQLite compiles a query only if it knows all names."""
    chance, whole, seed = random.Random(7), 0, 0
    names = [
        "id",
        "name",
        "pet",
        "pet_id",
        "petty",
        "year_2",
        "count",
        '"max (m)"',
        "[the day]",
        "`group`",
        "été",
    ]
    while whole < 5000:
        tables = {
            table: tuple(chance.sample(names, chance.randint(1, 8)))
            for table in chance.sample(names, chance.randint(1, 5))
        }
        created = chance.random() < 0.5
        prompt = (
            "\n".join(
                f"CREATE TABLE {table} ({' INT, '.join(columns)});" for table, columns in tables.items()
            )
            if created
            else "Tables: " + "; ".join(f"{table}({', '.join(columns)})" for table, columns in tables.items())
        )
        grammar = compiled(sql(f"{prompt}\nQuestion: how many?"))
        with closing(sqlite3.connect(":memory:")) as database:
            for table, columns in tables.items():
                database.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            for _ in range(10):
                tokens, ended = walked(grammar, seed, most=120)
                seed += 1
                if ended:
                    whole += 1
                    query = text_of(tokens)
                    database.execute(f"EXPLAIN {query}", (1,) * _STRING.sub("", query).count("?"))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "valid"])
def test_gold_queries_fit(split: str) -> None:
    rows = [
        json.loads(line)
        for line in gzip.decompress((DATA / f"code.{split}.jsonl.gz").read_bytes()).splitlines()
    ]
    rows = random.Random(0).sample(rows, min(60, len(rows)))
    fitting = sum(accepts(sql(row["prompt"]).text, row["response"]) for row in rows)
    assert fitting >= 0.995 * len(rows)
