"""SQL answers judged by what they find: a metric of recipes, and a judge of shadow answers.

`metric = "execution"` in a recipe uses `metric.py`. Copied to `plugins/`, the folder is a plugin whose judge
`execution` compares answers to prompts that have the tables in a line `Tables: singer(id, name); song(id)`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from router import hookimpl
from router.judging import REFERENCE, Scorer
from router.types import Request

from .column_order import Schema, asked_order, question_of
from .sql import QueryFailed, QueryJudge

TABLES = re.compile(r"^Tables:(.+)$", re.MULTILINE)
TABLE = re.compile(r"\s*([^(;]+?)\s*\(([^)]*)\)")


class Execution(Scorer):
    """1 for a query that gives the result of the request's label `reference`, else 0.

    It declines a request without that label or without tables, and a reference that cannot judge.
    """

    name = "execution"
    version = "1"

    def score(self, request: Request, answer: str) -> float | None:
        """Whether the answer is such a query, and nothing else."""
        reference, schema = request.labels.get(REFERENCE), tables_of(request.text)
        if reference is None or not schema:
            return None
        try:
            return float(judge_of(schema, reference, request.text).accepts(answer.strip()))
        except QueryFailed:
            return None


def tables_of(prompt: str) -> Schema:
    """The tables that a prompt names, with their columns; none where it has no line of them."""
    line = TABLES.search(prompt)
    found = TABLE.findall(line[1]) if line else []
    return tuple((name, tuple(column.strip() for column in columns.split(","))) for name, columns in found)


@lru_cache(maxsize=256)
def judge_of(schema: Schema, gold: str, prompt: str) -> QueryJudge:
    """The judge of a reference. Raises QueryFailed for one that does not run or has no definite result."""
    return QueryJudge(schema, gold, asked_order(question_of(prompt), gold, schema))


@hookimpl
def register_judges(register):
    """`execution`."""
    register(Execution())
