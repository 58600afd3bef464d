"""Temperatures fitted, and calibration judged."""

from __future__ import annotations

import numpy as np
import pytest

from router.extensions.training.export import manifest_text
from router.extensions.training.labels import (
    LEAST_ROWS,
    calibration_of,
    fit_temperature,
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


def test_right_answers_that_are_no_choice() -> None:
    scores, _ = drawn(LEAST_ROWS, 2.0)
    sure = fit_temperature(scores, scores.argmax(1))
    unsure = fit_temperature(scores, np.full(LEAST_ROWS, -1))
    assert 0.05 < sure < 1 < unsure
    assert places_of(["b", "x"], ["a", "b"]).tolist() == [1, -1]


CHOICES = ("a", 'b "c" \\d')


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
    read = parse_manifest(manifest_text(recipe, "base", "d" * 64, 1.25).encode(), "a")
    assert not read[1]
    assert read[0].generation.constraint == Constraint("choices", choices=CHOICES)
    assert read[0].labels.temperature == 1.25
