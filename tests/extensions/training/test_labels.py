"""Priors and temperatures fitted, and calibration judged."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from router.engine.labels import LabelTree
from router.errors import ConfigError
from router.extensions.training.evaluation.calibration import (
    LabelRows,
    measure_calibration,
    with_labels,
)
from router.extensions.training.evaluation.report import calibration_lines
from router.extensions.training.export import manifest_text
from router.extensions.training.labels import (
    LEAST_ROWS,
    FittedLabels,
    calibration_of,
    fit_labels,
    fit_temperature,
    label_scores,
    places_of,
    scaled,
)
from router.extensions.training.recipe import Recipe
from router.extensions.training.run import labels_of
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
    assert found.corrected - found.without > 0.1 > 2 * found.error
    assert found.prior[1] - found.prior[0] > 0.7
    assert found.prior[0] - found.prior[3] > 0.7
    assert found.temperature == fit_temperature(scores + found.prior, gold)
    section = measure_calibration(LabelRows(scores, gold), 1.0, found.prior, FLAT, found)
    prior = section["prior"]
    assert prior["used"]
    assert prior["test_with"] == section["likeliest"] > prior["test_without"] + 0.1
    assert f"Test rows: {prior['test_with']:.3f}" in "\n".join(calibration_lines(section))


def test_a_prior_that_gains_nothing_is_not_kept() -> None:
    scores, gold = drawn(400, 1.0)
    found = fit_labels(scores, gold, FLAT)
    assert found is not None
    assert found.prior == ()
    assert found.corrected - found.without < 0.02
    section = measure_calibration(LabelRows(scores, gold), 1.0, (), FLAT, found)
    assert "The adapter has none." in calibration_lines(section)


def test_few_rows_and_right_answers_that_are_no_choice() -> None:
    scores, gold = drawn(LEAST_ROWS, 2.0)
    assert fit_labels(scores, gold, FLAT) is not None
    assert fit_labels(scores[1:], gold[1:], FLAT) is None
    sure = fit_temperature(scores, scores.argmax(1))
    unsure = fit_temperature(scores, np.full(LEAST_ROWS, -1))
    assert 0.05 < sure < 1 < unsure
    assert places_of(["b", "x"], ["a", "b"]).tolist() == [1, -1]


def test_scores_are_products_over_the_branches(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from router.extensions.training.data import Rendering, TrainingRow
    from router.types import PromptTemplate
    from tests.extensions.training.tiny import save_base

    base = save_base(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    rendering = Rendering.of(AutoTokenizer.from_pretrained(base), PromptTemplate())
    choices, rows = ("red", "rose", "ro"), [TrainingRow("a thing", "red", ""), TrainingRow("b", "red", "")]
    scores = label_scores(model, rendering, rows, choices)
    assert np.exp(scores).sum(1) == pytest.approx([1, 1])
    prompt = rendering.prompt("b")
    tree = LabelTree.of([rendering.answer(choice)[:-1] for choice in choices], rendering.ends)
    e, o = (rendering.answer(text)[1] for text in ("re", "ro"))
    with torch.no_grad():
        first = model(torch.tensor([[*prompt, rendering.answer("r")[0]]])).logits[0, -1].double()
    assert scores[1, 0] == pytest.approx(float(first[[e, o]].log_softmax(0)[0]), abs=1e-4)
    assert len(tree.branchings) == 2
    recipe = SimpleNamespace(generation=SimpleNamespace(choices=choices))
    material: Any = SimpleNamespace(
        recipe=recipe, splits=SimpleNamespace(valid=rows * 15), rendering=rendering
    )
    assert labels_of(model, material) is not None
    material.splits.valid = rows
    assert labels_of(model, material) is None


CHOICES = ("a", 'b "c" \\d')
FITTED = FittedLabels(1.25, (0.5, -1.0), 40, 0.5, 0.75, 0.1)


@pytest.mark.parametrize("fitted", [FITTED, replace(FITTED, prior=())])
@pytest.mark.parametrize(
    "text",
    [
        '[adapter]\nname = "a"\n',
        '[generation]\nchoices = ["a"]\n\n[routing]\nkeywords = ["[labels]"]\n',
        "[labels]\ntemperature = 3 # old\nalways = true\n[routing]\nkeywords = []\n",
        '[labels]\ntemperature = 3\n\n[labels.prior]\na = 1.0\n"b" = 2\n\n[routing]\nkeywords = []\n',
        "[labels]\nalways = true\nprior = { a = 1.0 }",
        "[labels]",
        "",
    ],
)
def test_labels_are_written_and_nothing_else_changes(text: str, fitted: FittedLabels) -> None:
    before, made = tomllib.loads(text), with_labels(text, fitted, CHOICES)
    kept = {key: value for key, value in before.get("labels", {}).items() if key == "always"}
    prior = {"prior": dict(zip(CHOICES, fitted.prior, strict=True))} if fitted.prior else {}
    assert tomllib.loads(made) == before | {"labels": kept | {"temperature": 1.25} | prior}
    assert with_labels(made, fitted, CHOICES) == made


def test_an_unusual_manifest_is_left_alone() -> None:
    with pytest.raises(ConfigError, match="write into it"):
        with_labels('labels = { always = true }\n[base]\nmodel = "x"\n', FITTED, CHOICES)


def test_training_writes_what_it_fitted_as_fitting_later_would() -> None:
    recipe = Recipe.model_validate(
        {
            "adapter": {"name": "a"},
            "data": {"train": "t", "valid": "v", "test": "e"},
            "train": {"steps": 1},
            "generation": {"choices": CHOICES},
            "routing": {"keywords": ("k",)},
        }
    )
    plain = manifest_text(recipe, "base", "d" * 64)
    assert with_labels(plain, FITTED, CHOICES) == manifest_text(recipe, "base", "d" * 64, FITTED)
    read = parse_manifest(manifest_text(recipe, "base", "d" * 64, FITTED).encode(), "a")
    assert not read[1]
    assert read[0].generation.constraint == Constraint("choices", choices=CHOICES, prior=FITTED.prior)
