"""Temperatures fitted, and calibration judged."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from router.engine.labels import LabelTree
from router.errors import ConfigError
from router.extensions.training.evaluation.calibration import with_temperature
from router.extensions.training.labels import (
    LEAST_ROWS,
    calibration_of,
    fit_temperature,
    label_scores,
    places_of,
    scaled,
)
from router.extensions.training.run import temperature_of


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


def test_few_rows_and_right_answers_that_are_no_choice() -> None:
    scores, gold = drawn(LEAST_ROWS, 2.0)
    assert fit_temperature(scores, gold) is not None
    assert fit_temperature(scores[1:], gold[1:]) is None
    sure = fit_temperature(scores, scores.argmax(1))
    unsure = fit_temperature(scores, np.full(LEAST_ROWS, -1))
    assert sure is not None
    assert unsure is not None
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
    assert temperature_of(model, material) is not None
    material.splits.valid = rows
    assert temperature_of(model, material) is None


@pytest.mark.parametrize(
    "text",
    [
        '[adapter]\nname = "a"\n',
        '[generation]\nchoices = ["a"]\n\n[routing]\nkeywords = ["[labels]"]\n',
        "[labels]\ntemperature = 3 # old\nalways = true\n[routing]\nkeywords = []\n",
        "[labels]\nalways = true",
        "[labels]",
        "",
    ],
)
def test_a_temperature_is_written_and_nothing_else_changes(text: str) -> None:
    before, after = tomllib.loads(text), tomllib.loads(with_temperature(text, 1.25))
    assert after == before | {"labels": before.get("labels", {}) | {"temperature": 1.25}}


def test_an_unusual_manifest_is_left_alone() -> None:
    with pytest.raises(ConfigError, match="write into its table"):
        with_temperature('labels = { always = true }\n[base]\nmodel = "x"\n', 1.5)
