"""The train/test gap in numbers and in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.evaluation.generalization import gap, measure_overfitting, overfitting
from router.evaluation.subject import load_subject, read_manifest
from router.training.base import load_base
from router.training.batch import AnswerModel, collate
from router.training.data import load_splits
from router.training.recipe import load_recipe


def splits(train: float, test: float, half: float) -> dict[str, dict[str, float]]:
    return {
        name: {"loss": loss, "low": loss - half, "high": loss + half, "exact": 0.5, "rows": 100}
        for name, loss in (("train", train), ("valid", test), ("test", test))
    }


def test_gap_joins_both_intervals() -> None:
    found = gap(splits(1.0, 1.5, 0.3))
    assert found["value"] == pytest.approx(0.5)
    assert found["high"] - found["value"] == pytest.approx(0.3 * 2**0.5, abs=1e-4)
    assert found["value"] - found["low"] == pytest.approx(0.3 * 2**0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("train", "test", "half", "said"),
    [
        (
            0.05,
            0.09,
            0.01,
            "It overfits: the loss on test rows is above that on training rows by +0.040 nats",
        ),
        (0.05, 0.09, 0.05, "No overfitting that so few rows can show"),
        (1.6, 1.2, 0.1, "It does not overfit: test rows are easier"),
    ],
)
def test_the_sentence_follows_the_interval(train: float, test: float, half: float, said: str) -> None:
    assert overfitting(splits(train, test, half)).startswith(said)


def test_measured_splits_agree_with_the_pooled_loss(trained: Path) -> None:
    recipe = load_recipe(trained / "recipes" / "colours.toml")
    folder, rows = trained / "adapters" / "colours", load_splits(recipe.data)
    subject = load_subject(folder, read_manifest(folder), load_base(recipe.base.model, "cpu"))
    found = measure_overfitting(subject, rows, 9)
    assert [(name, split["rows"]) for name, split in found.items()] == [
        ("train", 9),
        ("valid", 9),
        ("test", 9),
    ]
    model = AnswerModel(subject.model)
    nats, tokens, right = model.judge(collate(subject.rendering.examples(rows.test)))
    model.close()
    assert found["test"]["loss"] == pytest.approx(float(nats.sum() / tokens.sum()), rel=1e-3)
    assert found["test"]["exact"] == pytest.approx(float(right.float().mean()), abs=1e-4)
    assert all(split["low"] <= split["loss"] <= split["high"] for split in found.values())
