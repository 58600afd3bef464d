"""Execution accuracy: queries that mean the same are told from queries that do not."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from recipes.execution.column_order import in_asked_order, question_of
from recipes.execution.metric import is_right, is_right_anywhere, query_judge
from recipes.execution.sql import same_result, same_text
from router.errors import ConfigError
from router.extensions.training.data import TrainingRow, read_rows

DATA = Path(__file__).parents[4] / "recipes" / "data"
SCHEMA = (("singer", ("id", "name", "age", "country")), ("song", ("song id", "id", "plays")))
BY_AGE = "SELECT name, age FROM singer ORDER BY age DESC"
TOP = "SELECT country, count(*) FROM singer GROUP BY country ORDER BY count(*) DESC LIMIT ?"
FREQUENT = "SELECT country FROM singer GROUP BY country HAVING count(*) > ?"


def row(gold: str) -> TrainingRow:
    return TrainingRow("p", gold, "data.jsonl:7", schema=SCHEMA)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("SELECT name FROM singer", " select singer.name from singer; "),
        ("SELECT min(age), max(age) FROM singer", "SELECT max(age), min(age) FROM singer"),
        ("SELECT name, id, name FROM singer", "SELECT id, name FROM singer ORDER BY age"),
        (BY_AGE, "SELECT age, name FROM singer ORDER BY age DESC"),
        (TOP, "SELECT count(id) AS n, country FROM singer GROUP BY country ORDER BY n DESC LIMIT ?"),
        ("SELECT id FROM singer WHERE age = ? AND name = ?", "SELECT id FROM singer WHERE name=? AND age=?"),
        ("SELECT id FROM singer WHERE age NOT BETWEEN ? AND ?", "SELECT id FROM singer WHERE age<? OR age>?"),
        ('SELECT "song id" FROM song', "SELECT [song id] FROM song"),
        ("SELECT name FROM singer", "WITH s AS (SELECT * FROM singer) SELECT name FROM s"),
    ],
)
def test_same_meaning(gold: str, answer: str) -> None:
    assert is_right(answer, row(gold))


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("SELECT name FROM singer", "SELECT DISTINCT name FROM singer"),
        ("SELECT name FROM singer", "SELECT name, age FROM singer"),
        ("SELECT count(*) FROM singer", "SELECT count(*) FROM song"),
        ("SELECT count(*) FROM singer", "SELECT count(DISTINCT age) FROM singer"),
        (BY_AGE, "SELECT name, age FROM singer ORDER BY age"),
        (BY_AGE, "SELECT name, age FROM singer"),
        (TOP, TOP.replace("DESC", "ASC")),
        (TOP, TOP.replace("LIMIT ?", "LIMIT 1")),
        ("SELECT id FROM singer WHERE age > ?", "SELECT id FROM singer WHERE age >= ?"),
        ("SELECT id FROM singer WHERE name LIKE ?", "SELECT id FROM singer WHERE name = ?"),
        (
            "SELECT id FROM singer WHERE age = ? OR name = ?",
            "SELECT id FROM singer WHERE age = ? AND name = ?",
        ),
        ("SELECT age FROM singer WHERE name = ?", "SELECT age FROM singer"),
        (
            "SELECT country FROM singer GROUP BY country HAVING count(*) > ?",
            "SELECT country FROM singer WHERE id > ?",
        ),
    ],
)
def test_other_meaning(gold: str, answer: str) -> None:
    assert is_right(gold, row(gold))
    assert not is_right(answer, row(gold))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no query",
        "SELECT nothing FROM singer",
        "SELECT name FROM singer; DROP TABLE singer",
        "DELETE FROM singer",
        "WITH x AS (SELECT 1) DELETE FROM singer",
        "PRAGMA query_only = OFF",
        "SELECT name FROM singer WHERE name = :a",
        "SELECT randomblob(1000000000) FROM singer",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "SELECT a.name FROM singer a, singer b, singer c, singer d, singer e, singer f, singer g, singer h",
    ],
)
def test_no_honest_query(answer: str) -> None:
    judge = query_judge(row("SELECT name FROM singer"))
    assert not judge.accepts(answer)
    assert not judge.compiles(answer)
    assert judge.accepts("SELECT name FROM singer")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Sure:\n```sql\nSELECT age FROM singer WHERE name = 'Joe';\n```\nIt finds ages.", True),
        ('SELECT age FROM singer WHERE name = "Joe"', True),
        ("Use this.\n\nselect age\nfrom singer\nwhere name = ?\n\nGood luck", True),
        ("SELECT name FROM singer; SELECT age FROM singer WHERE name = ?", False),
        ("You select the age from the singer table", False),
    ],
)
def test_format_blind(answer: str, found: bool) -> None:
    asked = row("SELECT age FROM singer WHERE name = ?")
    assert not is_right(answer, asked)
    assert is_right_anywhere(answer, asked) is found


def test_same_text_forgives_case_and_space() -> None:
    assert same_text("select  NAME from singer ;", "SELECT name FROM singer")
    assert not same_text("SELECT id FROM singer", "SELECT name FROM singer")


def test_columns_without_order_keep_rows_together() -> None:
    assert same_result([(1, 2), (2, 1)], [(1, 2), (2, 1)], ordered=False)
    assert not same_result([(1, 5), (2, 6)], [(6, 1), (5, 2)], ordered=False)
    assert not same_result([(1,), (2,)], [(2,), (1,)], ordered=True)


@pytest.mark.parametrize(
    ("gold", "schema", "said"),
    [
        ("SELECT name FROM nowhere", SCHEMA, "no such table: nowhere"),
        ("SELECT name FROM singer", (), "has no 'schema'"),
        ("SELECT name FROM singer LIMIT ?", SCHEMA, "order in which rows were stored"),
        ("SELECT a FROM t", (("t", ("a", "A")),), "the schema is not SQLite's"),
    ],
)
def test_gold_that_cannot_judge_is_named(gold: str, schema: tuple[()], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        query_judge(TrainingRow("p", gold, "data.jsonl:7", schema=schema))
    assert said in caught.value.message
    assert caught.value.message.startswith("data.jsonl:7")


@pytest.mark.slow
@pytest.mark.long
def test_shipped_queries_are_told_apart() -> None:
    """Every gold in its question's order is right; of others hardly any, and those that mean the same."""
    golds = defaultdict[object, dict[str, TrainingRow]](dict)
    for split in ("train", "valid"):
        for read in read_rows(DATA / f"code.{split}.jsonl.gz"):
            golds[read.schema][read.response] = read
    same = []
    for rows in golds.values():
        for gold, judged in rows.items():
            assert is_right(in_asked_order(question_of(judged.prompt), gold, judged.schema), judged)
            same += [(gold, other) for other in rows if other != gold and is_right(other, judged)]
    assert len(same) <= 10
    assert all("ORDER BY" not in gold or sorted(gold) == sorted(other) for gold, other in same)
