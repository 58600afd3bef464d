"""The metric `execution` of recipes: a query is right if it gives the gold query's result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from router.errors import ConfigError
from router.extensions.training.data import TrainingRow
from router.extensions.training.evaluation.scoring import MeanScorer, MetricScores, RecipeMetric, Task

from .column_order import asked_order, question_of
from .sql import QueryFailed, QueryJudge, first_select, same_text, without_literals


@lru_cache(maxsize=4096)
def query_judge(row: TrainingRow) -> QueryJudge:
    """The judge of a data row. Raises ConfigError, naming the row, if its gold query cannot judge."""
    if not row.schema:
        raise ConfigError(f"{row.place} has no 'schema': the metric execution needs tables and columns")
    try:
        columns = asked_order(question_of(row.prompt), row.response, row.schema)
        return QueryJudge(row.schema, row.response, columns)
    except QueryFailed as error:
        raise ConfigError(f"{row.place}: the gold query cannot be judged by execution: {error}") from error


def is_right(answer: str, row: TrainingRow) -> bool:
    """The answer is a query, and nothing else, with the gold's result, columns as the question has them."""
    return query_judge(row).accepts(answer.strip())


def is_right_anywhere(answer: str, row: TrainingRow) -> bool:
    """Format-blind: the first SELECT in the answer counts, values written out count as `?`."""
    query = first_select(answer)
    readings = (answer.strip(), query, without_literals(query, row.schema))
    return any(query_judge(row).accepts(reading) for reading in readings)


def _execution_scores(task: Task, answers: Sequence[str]) -> MetricScores:
    pairs = list(zip(answers, task.rows, strict=True))
    return MetricScores(
        MeanScorer([is_right(*pair) for pair in pairs]),
        MeanScorer([is_right_anywhere(*pair) for pair in pairs]),
        {
            "compiles": MeanScorer([query_judge(row).compiles(answer.strip()) for answer, row in pairs]),
            "same text": MeanScorer([same_text(answer, row.response) for answer, row in pairs]),
        },
    )


def _check_gold_queries(rows: Sequence[TrainingRow]) -> None:
    for row in rows:
        query_judge(row)


METRIC = RecipeMetric(
    "same result when executed",
    3,
    "An answer is right if it is one SELECT statement that gives the gold query's result in all of 8 to 10 "
    "tries: SQLite databases of random rows, with values for ? that find something. Columns must stand in "
    "the order in which the question lists them, whatever the gold's; if it does not list them all, in any "
    "order. Rows may stand in any order unless the gold sorts them; so may the ?, which have no names. "
    "Format-blind: the first SELECT anywhere in the answer counts, without code fences, and values written "
    "out count as ?.",
    _execution_scores,
    references=lambda _: {},
    check=_check_gold_queries,
)
