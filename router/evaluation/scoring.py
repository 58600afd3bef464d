"""The metrics by the names recipes call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.evaluation.labels import EXACT_MATCH
from router.evaluation.metrics import Metric, Scores, Task
from router.evaluation.rouge import ROUGE_L
from router.evaluation.sql.metric import EXECUTION
from router.evaluation.squad import TOKEN_F1
from router.evaluation.translation import CHRF_METRIC
from router.training.data import Row

METRICS: Mapping[str, Metric] = {
    "exact_match": EXACT_MATCH,
    "chrf": CHRF_METRIC,
    "token_f1": TOKEN_F1,
    "rouge_l": ROUGE_L,
    "execution": EXECUTION,
}


def check_rows(metric: str, rows: Sequence[Row]) -> None:
    """Raises ConfigError, naming the row, for rows that a metric cannot judge."""
    METRICS[metric].check(rows)


def scores(task: Task, answers: Sequence[str]) -> Scores:
    """Judge one answer for each row of the task. Raises ConfigError for rows that the metric cannot judge."""
    return METRICS[task.metric].scores(task, answers)
