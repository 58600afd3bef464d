"""What every metric is made of.

A `Scorer` is made once from all answers and asked for the score of any selection of rows, so that the
bootstrap can resample it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from router.training.data import Row

Selection = NDArray[np.intp]


class Scorer(Protocol):
    """Answers of one arm, ready to be scored."""

    def score(self, rows: Selection) -> float:
        """The score of these rows (a row may occur more than once)."""
        ...


class MeanScorer:
    """The mean of a number for each row."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = np.asarray(values, dtype=float)

    def score(self, rows: Selection) -> float:
        """Mean over the rows."""
        return float(self._values[rows].mean())


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked and how answers are judged.

    `labels`, commonest first, is empty unless answers are names of a list; `parts` are patterns whose
    first group is a part of an answer that counts for itself.
    """

    metric: str
    rows: Sequence[Row]
    labels: Sequence[str]
    max_tokens: int
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """The metric, its twin that does not look at the format, and further figures."""

    score: Scorer
    blind: Scorer
    parts: Mapping[str, Scorer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of `[evaluation]` in a recipe."""

    title: str
    digits: int  # shown
    reading: str  # how a reader takes its figures
    scores: Callable[[Task, Sequence[str]], Scores]
    references: Callable[[Task], Mapping[str, Sequence[str]]]  # answers that cost nothing, by name
    whole: float = 1  # the score of an answer that is all right
    check: Callable[[Sequence[Row]], None] = lambda rows: None  # raises ConfigError: rows it cannot judge


def pieces(answer: str) -> list[str]:
    """The answer, its lines, its sentences and what it puts in quotes: where the answer proper may stand."""
    quoted: list[str] = re.findall(r'["“«](.+?)["”»]', answer)
    sentences = re.split(r"(?<=[.!?:])\s+", answer)
    return list(dict.fromkeys([answer, *answer.splitlines(), *sentences, *quoted]))


def best_piece(answer: str, closeness: Callable[[str], float]) -> float:
    """The most that any piece of an answer scores."""
    return max(map(closeness, pieces(answer)))
