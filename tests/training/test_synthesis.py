"""The synthetic rows that `code` also learns from."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


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
def test_the_shipped_file_is_what_the_command_makes(sql_rows: ModuleType) -> None:
    lines = gzip.decompress((RECIPES / "data" / "code.mixed.jsonl.gz").read_bytes()).decode().splitlines()
    shipped = {line for line in lines if '"source": "synthetic"' in line}
    assert shipped == {json.dumps(row, ensure_ascii=False) for row in sql_rows.make(1800, 1)}


def test_rows_name_nothing_outside_their_schema(sql_rows: ModuleType) -> None:
    words = {"SELECT", "FROM", "WHERE", "ORDER", "BY", "ASC", "DESC", "LIMIT", "GROUP", "HAVING", "AND", "OR"}
    words |= {"DISTINCT", "BETWEEN", "LIKE", "count", "avg", "max", "min", "sum"}
    for row in sql_rows.make(200, 5):
        schema = row["schema"]
        known = words | set(schema) | {column for columns in schema.values() for column in columns}
        said = str(row["response"]).translate(str.maketrans("(),*=<>!?", " " * 9)).split()
        assert set(said) <= known
        assert "{" not in row["prompt"]
        assert "{" not in row["response"]


def test_databases_of_the_test_split_stay_out(sql_rows: ModuleType) -> None:
    data = gzip.decompress((RECIPES / "data" / "code.test.jsonl.gz").read_bytes()).decode().splitlines()
    tested = {name for line in data for name in json.loads(line)["schema"]}
    assert not tested & {table.name for database in sql_rows.read_databases() for table in database}


def test_a_pattern_without_its_columns_is_passed_over(sql_rows: ModuleType) -> None:
    table = sql_rows.Table("t", "thing", "things", (sql_rows.Column("a", "n", "number"),))
    pattern = sql_rows.Pattern("SELECT {d} FROM {T}", ("When?",))
    assert sql_rows.fill(pattern, table, random.Random(0)) is None
