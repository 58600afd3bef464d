"""Scores with their intervals: input and output of a metric, and the paired bootstrap over rows.

A scorer is made once from all answers and gives the score of any selection of rows, so that the bootstrap
can resample it (Efron and Tibshirani 1993; for text, Koehn 2004, aclanthology.org/W04-3250). Metrics that
stand beside the recipes that use them are `METRIC` in recipes/NAME/metric.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from router.built_in import built_in_folders
from router.errors import ConfigError
from router.extensions.training.data import TrainingRow

Selection = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked and how answers are judged.

    `labels`, commonest first, is empty unless answers are names of a list; `parts` are patterns whose
    first group is a part of an answer that counts for itself.
    """

    metric: str
    rows: Sequence[TrainingRow]
    labels: Sequence[str]
    max_tokens: int
    parts: Mapping[str, str] = field(default_factory=dict)


class ArmScorer(Protocol):
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
class MetricScores:
    """The metric, its twin that does not look at the format, and further figures."""

    score: ArmScorer
    blind: ArmScorer
    parts: Mapping[str, ArmScorer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecipeMetric:
    """A metric of `[evaluation]` in a recipe."""

    title: str
    digits: int  # shown
    reading: str  # how a reader takes its figures
    scores: Callable[[Task, Sequence[str]], MetricScores]
    references: Callable[[Task], Mapping[str, Sequence[str]]]  # answers that cost nothing, by name
    whole: float = 1  # the score of an answer that is all right
    check: Callable[[Sequence[TrainingRow]], None] = lambda rows: (
        None
    )  # raises ConfigError: rows it cannot judge


@dataclass(frozen=True, slots=True)
class ScoreEstimate:
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """As reports have it."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True, slots=True)
class Resampled:
    """A score on all rows, and on each of the resampled sets of rows."""

    value: float
    draws: NDArray[np.float64]

    def estimate(self) -> ScoreEstimate:
        """The score with its interval."""
        low, high = np.percentile(self.draws, [2.5, 97.5])
        return ScoreEstimate(self.value, float(low), float(high))

    def rounded(self) -> dict[str, float]:
        """The estimate as reports have it."""
        return self.estimate().rounded()

    def minus(self, other: Resampled) -> ScoreEstimate:
        """The difference with its interval, paired: both saw the same rows in every draw."""
        return Resampled(self.value - other.value, self.draws - other.draws).estimate()


def resample(scorer: ArmScorer, rows: int, samples: int = 2000) -> Resampled:
    """Score `samples` sets of `rows` rows drawn with replacement: always the same, so that arms pair."""
    generator = np.random.default_rng(0)
    draws = np.array([scorer.score(generator.integers(0, rows, rows)) for _ in range(samples)])
    return Resampled(scorer.score(np.arange(rows)), draws)


def row_scores(scorer: ArmScorer, rows: int, whole: float) -> list[float]:
    """The score of each row alone, as a share of the best possible one."""
    each = (scorer.score(np.array([place])) / whole for place in range(rows))
    return [round(min(1.0, max(0.0, score)), 4) for score in each]


RECIPE_METRICS = ("execution",)


def recipe_metric(name: str) -> RecipeMetric:
    """The metric of a folder of recipes. Raises ConfigError where the folder is not there."""
    folders = built_in_folders(f"recipes/{name}")
    if not folders:
        raise ConfigError(f"the metric {name} needs the folder recipes/{name}, which is not there")
    module = f"lora_router_recipe_{name}"
    if module not in sys.modules:
        loader = SourceFileLoader(module, str(folders[0] / "__init__.py"))
        spec = ModuleSpec(module, loader, is_package=True)
        spec.submodule_search_locations = [str(folders[0])]
        package = sys.modules[module] = module_from_spec(spec)
        loader.exec_module(package)
    metric: RecipeMetric = import_module(f"{module}.metric").METRIC
    return metric
