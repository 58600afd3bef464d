"""The synthetic rows that `code` also learns from."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from recipes.execution.column_order import asked_order, question_of

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture(scope="module")
def sql_rows() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sql_rows", RECIPES / "synthesis" / "sql_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sql_rows"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.long
def test_the_shipped_file_is_what_the_command_makes(sql_rows: ModuleType) -> None:
    lines = gzip.decompress((RECIPES / "data" / "code.mixed.jsonl.gz").read_bytes()).decode().splitlines()
    shipped = {line for line in lines if '"source": "synthetic"' in line}
    assert shipped == {json.dumps(row, ensure_ascii=False) for row in sql_rows.make(sql_rows.ROWS, 1)}
    real = gzip.decompress((RECIPES / "data" / "code.train.jsonl.gz").read_bytes()).decode().splitlines()
    assert Counter(lines) == Counter([*shipped, *2 * [sql_rows.ordered(line) for line in real]])


def test_queries_select_in_the_question_s_order(sql_rows: ModuleType) -> None:
    lines = gzip.decompress((RECIPES / "data" / "code.mixed.jsonl.gz").read_bytes()).decode().splitlines()
    demanded = 0
    for line in lines:
        row = json.loads(line)
        tables = list(row["schema"].items())
        order = asked_order(question_of(row["prompt"]), row["response"], tables)
        demanded += order is not None
        assert order is None or list(order) == sorted(order)
        assert sql_rows.ordered(line) == line
    assert demanded > 1_000


def test_rows_name_nothing_outside_their_schema(sql_rows: ModuleType) -> None:
    words = {"SELECT", "FROM", "WHERE", "ORDER", "BY", "ASC", "DESC", "LIMIT", "GROUP", "HAVING", "AND", "OR"}
    words |= {"DISTINCT", "BETWEEN", "LIKE", "IN", "NOT", "count", "avg", "max", "min", "sum"}
    for row in sql_rows.make(200, 5):
        schema = row["schema"]
        known = words | set(schema) | {column for columns in schema.values() for column in columns}
        said = str(row["response"]).translate(str.maketrans("(),*=<>!?", " " * 9)).split()
        assert set(said) <= known
        assert "{" not in row["prompt"]
        assert "{" not in row["response"]


def names(split: str) -> tuple[set[str], set[str]]:
    """Names of tables and of columns."""
    data = gzip.decompress((RECIPES / "data" / f"code.{split}.jsonl.gz").read_bytes()).decode().splitlines()
    schemas = [json.loads(line)["schema"] for line in data]
    return {name for one in schemas for name in one}, {
        c for one in schemas for names in one.values() for c in names
    }


def test_databases_of_the_test_split_stay_out(sql_rows: ModuleType) -> None:
    tables, columns = names("test")
    common = names("train")[1] | names("valid")[1]  # id, name, country, …
    made = [table for database in sql_rows.read_databases() for table in database]
    assert not tables & {table.name for table in made}
    assert not (columns - common) & {column.name for table in made for column in table.columns}


def test_a_pattern_without_its_columns_is_passed_over(sql_rows: ModuleType) -> None:
    table = sql_rows.Table("t", "thing", "things", (sql_rows.Column("a", "n", "number"),))
    pattern = sql_rows.Pattern("SELECT {d} FROM {T}", ("When?",))
    assert sql_rows.fill(pattern, table, random.Random(0)) is None


def test_a_pattern_without_its_other_table_is_passed_over(sql_rows: ModuleType) -> None:
    own = sql_rows.Table("t", "thing", "things", (sql_rows.Column("t_id", "i", "thing id"),))
    other = sql_rows.Table("u", "use", "uses", (sql_rows.Column("t_id", "i", "thing id"),))
    pattern = sql_rows.Pattern(
        "SELECT {i} FROM {T} WHERE {i} IN (SELECT {i} FROM {R})", ("Which {p} have {y}?",)
    )
    assert sql_rows.fill(pattern, own, random.Random(0), [own]) is None
    query = "SELECT t_id FROM t WHERE t_id IN (SELECT t_id FROM u)"
    assert sql_rows.fill(pattern, own, random.Random(0), [own, other]) == ("Which things have uses?", query)


def test_plurals_of_phrases(sql_rows: ModuleType) -> None:
    said = {
        "city": "cities",
        "number of seats": "number of seats",
        "hours lost": "hours lost",
        "bonus": "bonuses",
    }
    said |= {"year built": "years built", "address": "addresses", "details": "details", "box": "boxes"}
    assert {phrase: sql_rows._plural(phrase) for phrase in said} == said
