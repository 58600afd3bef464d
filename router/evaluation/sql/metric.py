"""The metric `execution`."""

from __future__ import annotations

from collections.abc import Sequence

from router.evaluation.metrics import MeanScorer, Metric, Scores, Task
from router.evaluation.sql.judge import query_judge
from router.evaluation.sql.tokens import first_select, tokens, without_literals
from router.training.data import Row


def right(answer: str, row: Row) -> bool:
    """The answer is a query, and nothing else, with the gold's result."""
    return query_judge(row).accepts(answer.strip())


def right_anywhere(answer: str, row: Row) -> bool:
    """Format-blind: the first SELECT in the answer counts, values written out count as `?`."""
    query = first_select(answer)
    readings = (answer.strip(), query, without_literals(query, row.schema))
    return any(query_judge(row).accepts(reading) for reading in readings)


def same_text(answer: str, gold: str) -> bool:
    """Token by token, whatever the case."""
    return tokens(answer.strip().removesuffix(";")) == tokens(gold.strip().removesuffix(";"))


def _scores(task: Task, answers: Sequence[str]) -> Scores:
    pairs = list(zip(answers, task.rows, strict=True))
    return Scores(
        MeanScorer([right(*pair) for pair in pairs]),
        MeanScorer([right_anywhere(*pair) for pair in pairs]),
        {
            "compiles": MeanScorer([query_judge(row).compiles(answer.strip()) for answer, row in pairs]),
            "same text": MeanScorer([same_text(answer, row.response) for answer, row in pairs]),
        },
    )


def _check(rows: Sequence[Row]) -> None:
    for row in rows:
        query_judge(row)


EXECUTION = Metric(
    "same result when executed",
    3,
    "An answer is right if it is one SELECT statement that gives the gold query's result in all of 8 to 10 "
    "tries: SQLite databases of random rows, with values for ? that find something. Columns may stand in any "
    "order; rows too, unless the gold sorts them; so may the ?, which have no names. Format-blind: the first "
    "SELECT anywhere in the answer counts, without code fences, and values written out count as ?.",
    _scores,
    references=lambda _: {},
    check=_check,
)
