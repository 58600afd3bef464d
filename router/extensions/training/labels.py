"""Probabilities of an adapter's choices: calibrated on validation rows, and judged on others.

Calibration is temperature scaling (Guo et al. 2017, arXiv 1706.04599): one number, so that it does not change
which choice is the likeliest, and a few dozen rows are enough for it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.subject import Answerer
from router.types import Constraint, LabelProbabilities, LabelSettings

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
LEAST_ROWS = 30  # that a temperature is fitted on
LOWEST, HIGHEST = 0.05, 20.0  # of temperatures
TRIED = 600  # temperatures, each 1 % more than the one before
BINS = 10


def ask_labels(
    answerer: Answerer, rendering: Rendering, rows: Sequence[TrainingRow], constraint: Constraint
) -> Floats:
    """Log-probabilities [rows, choices] without temperature, by the engine that serves."""
    asked = replace(answerer, labels=LabelSettings())
    answers = asked.answers([rendering.prompt(row.prompt) for row in rows])
    return scores_of([answer.labels for answer in answers if answer.labels is not None], constraint.choices)


def scores_of(found: Sequence[LabelProbabilities], choices: Sequence[str]) -> Floats:
    """Log-probabilities [rows, choices], in the order of the choices."""
    with np.errstate(divide="ignore"):
        return np.log([[dict(one.values)[choice] for choice in choices] for one in found])


def fit_temperature(scores: Floats, gold: Places) -> float:
    """The temperature under which the likeliest choice is as likely as it is often right.

    `scores` are log-probabilities [rows, choices], `gold` the right choice of each row, -1 where it is none.
    The log loss of "the likeliest choice is right" is least there: not that of all choices, in which single
    rows with a right answer that seemed impossible weigh the most. Targets are smoothed as by Platt (1999),
    so that a few rows that are all right do not make it certain.
    """
    right = scores.argmax(1) == gold
    hits = int(right.sum())
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(gold) - hits + 2))

    def loss(temperature: float) -> float:
        sure = np.clip(scaled(scores, temperature).max(1), 1e-9, 1 - 1e-9)
        return float(-(targets * np.log(sure) + (1 - targets) * np.log(1 - sure)).sum())

    tried = np.geomspace(LOWEST, HIGHEST, TRIED)
    return round(float(min(tried, key=loss)), 3)


def scaled(scores: Floats, temperature: float) -> Floats:
    """Probabilities [rows, choices]."""
    logits = scores / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def places_of(golds: Sequence[str], choices: Sequence[str]) -> Places:
    """The place of each right answer among the choices, -1 where it is none of them."""
    places = {choice: place for place, choice in enumerate(choices)}
    return np.array([places.get(gold, -1) for gold in golds], np.intp)


def measure_calibration(scores: Floats, gold: Places, temperature: float | None) -> dict[str, Any]:
    """`calibration_of` test rows under the temperature, with how often the likeliest choice is right, and the
    error without the temperature."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": len(gold),
        "temperature": temperature,
        "likeliest": round(float((scores.argmax(1) == gold).mean()), 4),
        **calibration_of(scaled(scores, temperature or 1.0), gold),
        "error_before": calibration_of(scaled(scores, 1.0), gold)["error"],
    }


def calibration_of(probabilities: Floats, gold: Places) -> dict[str, Any]:
    """How far the probabilities [rows, choices] are from how often they are right.

    Returns {"error", "error_all", "by_chance", "bins"}. `error` is the expected calibration error of the
    likeliest choice: rows in BINS bins of equal width by its probability, and the mean distance between
    probability and share of right ones. `error_all` is the same over all choices of all rows. `by_chance` is
    what `error` would be on so many rows if the probabilities were exact: the mean of 200 draws by a fixed
    seed.
    """
    sure, right = probabilities.max(1), probabilities.argmax(1) == gold
    hits = np.zeros_like(probabilities)
    known = np.flatnonzero(gold >= 0)
    hits[known, gold[known]] = 1
    draw = np.random.default_rng(0)
    chance = [_error(sure, draw.random(len(sure)) < sure) for _ in range(200)]
    bins = _bins(sure)
    return {
        "error": round(_error(sure, right), 4),
        "error_all": round(_error(probabilities.ravel(), hits.ravel()), 4),
        "by_chance": round(float(np.mean(chance)), 4),
        "bins": [
            {
                "rows": int((bins == place).sum()),
                "sure": round(float(sure[bins == place].mean()), 4),
                "right": round(float(right[bins == place].mean()), 4),
            }
            for place in range(BINS)
            if (bins == place).any()
        ],
    }


def _bins(sure: Floats) -> Places:
    return np.minimum((sure * BINS).astype(np.intp), BINS - 1)


def _error(sure: Floats, right: NDArray[Any]) -> float:
    bins, gap = _bins(sure), sure - right
    return float(np.abs(np.bincount(bins, gap, BINS)).sum() / len(sure))
