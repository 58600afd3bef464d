"""The rows that are asked, and the ranking of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from router.extensions.training.base import load_base
from router.extensions.training.data import AnswerModel, TrainingRow
from router.extensions.training.evaluation.exam import (
    MOST_PAIRS,
    MOST_RANKED,
    draw_rows,
    likeliest_answer,
    ranked_rows,
)
from router.extensions.training.evaluation.scoring import Task


def test_draw_is_fixed_and_without_repetition() -> None:
    rows: Any = list(range(50))
    assert draw_rows(rows, None) == rows
    assert draw_rows(rows, 10) == draw_rows(rows, 10)
    assert len(set(draw_rows(rows, 10))) == 10


def test_likeliest_is_the_one_with_the_least_loss(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AnswerModel(load_base(str(trained / "base"), "cpu").model)
    answers = [(5, 6), (7,), (8, 9, 10)]
    chosen = likeliest_answer(model, (3, 4), answers)
    monkeypatch.setattr("router.extensions.training.evaluation.exam.LABEL_BATCH", 2)
    assert likeliest_answer(model, (3, 4), answers) == chosen
    logits = model.model
    model.close()
    losses = []
    for answer in answers:
        tokens = torch.tensor([(3, 4, *answer)])
        with torch.no_grad():
            scores = torch.log_softmax(logits(input_ids=tokens).logits.float(), -1)[0, 1:-1]
        losses.append(-scores.gather(1, torch.tensor(answer)[:, None]).mean().item())
    assert chosen == losses.index(min(losses))


def test_many_labels_are_ranked_on_fewer_rows() -> None:
    rows = [TrainingRow(f"p{place}", "r", "") for place in range(300)]
    assert ranked_rows(Task("exact_match", rows[:7], ["a", "b"], 4)) == list(range(7))
    assert len(ranked_rows(Task("exact_match", rows, ["a", "b"], 4))) == MOST_RANKED
    many = ranked_rows(Task("exact_match", rows, [str(label) for label in range(200)], 4))
    assert len(many) == MOST_PAIRS // 200
    assert many == sorted(set(many))
    assert ranked_rows(Task("chrf", rows, [], 4)) == []
