"""Probabilities of an adapter's choices: calibrated on validation rows, and judged on others.

Calibration is temperature scaling (Guo et al. 2017, arXiv 1706.04599): one number, so that it cannot change
which choice is the likeliest, and a few dozen rows are enough for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.engine.labels import LabelTree
from router.extensions.training.data import AnswerModel, Example, Rendering, TrainingRow, collate
from router.types import MAX_LABELLED

Floats = NDArray[np.float64]
LEAST_ROWS = 30  # that a temperature is fitted on
LOWEST, HIGHEST = 0.05, 20.0  # of temperatures
HALVINGS = 60
BINS = 10


def label_scores(
    model: Any, rendering: Rendering, rows: Sequence[TrainingRow], choices: Sequence[str]
) -> Floats:
    """Log-probabilities [rows, choices], as `router.engine.labels` defines them, by transformers."""
    tree = LabelTree.of([rendering.answer(choice)[:-1] for choice in choices], rendering.ends)
    answers = AnswerModel(model)
    found = [_scores_of(answers, rendering.prompt(row.prompt), tree) for row in rows]
    answers.close()
    return np.array(found)


def _scores_of(model: AnswerModel, prompt: tuple[int, ...], tree: LabelTree) -> Floats:
    """Of one row. All paths are read at once, behind the prompt."""
    import torch

    paths = [Example(prompt, (*path, 0)) for path in tree.paths]  # what is behind a path is not looked at
    values: list[NDArray[np.float32]] = []
    if paths:
        with torch.no_grad():
            logits, _ = model.logits(collate(paths).to(model.model.device))
        start = 0
        for number, path in enumerate(tree.paths):
            places = [
                (b.before, t) for b in tree.branchings if b.path == number for c in b.children for t in c
            ]
            values.append(logits[[start + p for p, _ in places], [t for _, t in places]].cpu().numpy())
            start += len(path) + 1
    return tree.log_probabilities(values)


def fit_temperature(scores: Floats, gold: NDArray[np.intp]) -> float | None:
    """The temperature under which the right choices are likeliest; None for too few rows.

    `scores` are log-probabilities [rows, choices], `gold` the right choice of each row, -1 where it is none.
    The likelihood is concave in the reciprocal of the temperature, so that bisection of its slope finds it.
    """
    known = gold >= 0
    scores, gold = scores[known], gold[known]
    if len(gold) < LEAST_ROWS:
        return None
    right = scores[np.arange(len(gold)), gold]
    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        sharp = np.exp(middle)
        expected = np.where(scores > -np.inf, scores, 0.0)
        slope = float((right - (scaled(scores, 1 / sharp) * expected).sum(1)).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return round(float(np.exp(-(low + high) / 2)), 4)


def scaled(scores: Floats, temperature: float) -> Floats:
    """Probabilities [rows, choices]."""
    logits = scores / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def places_of(golds: Sequence[str], choices: Sequence[str]) -> NDArray[np.intp]:
    """The place of each right answer among the choices, -1 where it is none of them."""
    places = {choice: place for place, choice in enumerate(choices)}
    return np.array([places.get(gold, -1) for gold in golds], np.intp)


def labelled(choices: Sequence[str]) -> bool:
    """Whether there are as many as probabilities are given of."""
    return 1 < len(choices) <= MAX_LABELLED


def calibration_of(probabilities: Floats, gold: NDArray[np.intp]) -> dict[str, Any]:
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


def _bins(sure: Floats) -> NDArray[np.intp]:
    return np.minimum((sure * BINS).astype(np.intp), BINS - 1)


def _error(sure: Floats, right: NDArray[Any]) -> float:
    bins, gap = _bins(sure), sure - right
    return float(np.abs(np.bincount(bins, gap, BINS)).sum() / len(sure))
