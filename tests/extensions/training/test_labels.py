"""Priors and temperatures fitted, and calibration judged."""

from __future__ import annotations

import numpy as np
import pytest

from router.engine.labels import LabelTree
from router.extensions.training.export import manifest_text
from router.extensions.training.labels import (
    LEAST_ROWS,
    FittedLabels,
    calibration_of,
    fit_labels,
    fit_temperature,
    measure_calibration,
    places_of,
    scaled,
)
from router.extensions.training.recipe import Recipe
from router.registry.format.manifest import parse_manifest
from router.types import Constraint


def drawn(rows: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are too sure by that temperature, and right choices drawn by the true probabilities."""
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 2, (rows, 5))
    true = scaled(logits, 1.0)
    gold = np.array([draw.choice(5, p=p) for p in true])
    scores = logits * temperature
    return scores - np.logaddexp.reduce(scores, 1, keepdims=True), gold


def test_the_temperature_that_made_scores_too_sure_is_found() -> None:
    scores, gold = drawn(4000, 2.0)
    found = fit_temperature(scores, gold)
    assert found == pytest.approx(2.0, rel=0.05)
    before, after = (calibration_of(scaled(scores, t), gold) for t in (1.0, found))
    assert before["error"] > 0.1
    assert after["error"] < 2 * after["by_chance"] < 0.04
    assert sum(one["rows"] for one in after["bins"]) == 4000


FLAT = LabelTree.of([(token,) for token in range(1, 6)], (0,))  # the choices branch at once


def test_a_prior_that_was_missing_is_found_and_kept() -> None:
    draw = np.random.default_rng(2)
    logits, missing = draw.normal(0, 1, (400, 5)), np.array([0.0, 2.0, 0.0, -2.0, 0.0])
    gold = np.array([draw.choice(5, p=p) for p in scaled(logits + missing, 1.0)])
    scores = np.log(scaled(logits, 1.0))
    found = fit_labels(scores, gold, FLAT)
    assert found is not None
    assert found.corrected - found.without > 0.1
    assert found.prior[1] - found.prior[0] > 0.7
    assert found.prior[0] - found.prior[3] > 0.7
    assert found.temperature == fit_temperature(scores + found.prior, gold)
    section = measure_calibration(scores, gold, 1.0, found.prior)
    assert section["likeliest"] > measure_calibration(scores, gold, 1.0, ())["likeliest"] + 0.1


def test_a_prior_that_gains_nothing_is_not_kept() -> None:
    scores, gold = drawn(400, 1.0)
    found = fit_labels(scores, gold, FLAT)
    assert found is not None
    assert found.prior == ()
    assert found.corrected - found.without < 0.02


def test_few_rows_and_right_answers_that_are_no_choice() -> None:
    scores, gold = drawn(LEAST_ROWS, 2.0)
    assert fit_labels(scores, gold, FLAT) is not None
    assert fit_labels(scores[1:], gold[1:], FLAT) is None
    sure = fit_temperature(scores, scores.argmax(1))
    unsure = fit_temperature(scores, np.full(LEAST_ROWS, -1))
    assert 0.05 < sure < 1 < unsure
    assert places_of(["b", "x"], ["a", "b"]).tolist() == [1, -1]


CHOICES = ("a", 'b "c" \\d')
FITTED = FittedLabels(1.25, (0.5, -1.0), 0.5, 0.75)


def test_a_manifest_has_what_was_fitted() -> None:
    recipe = Recipe.model_validate(
        {
            "adapter": {"name": "a"},
            "data": {"train": "t", "valid": "v", "test": "e"},
            "train": {"steps": 1},
            "generation": {"choices": CHOICES},
            "routing": {"keywords": ("k",)},
        }
    )
    read = parse_manifest(manifest_text(recipe, "base", "d" * 64, FITTED).encode(), "a")
    assert not read[1]
    assert read[0].generation.constraint == Constraint("choices", choices=CHOICES, prior=FITTED.prior)
