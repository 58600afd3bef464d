"""The likeliest label: which of all labels an arm finds likeliest, so that format plays no part."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from router.evaluation.arms import Asking
from router.evaluation.metrics import MeanScorer, Scorer, Task
from router.evaluation.speaker import bar
from router.evaluation.subject import Subject
from router.training.answers import AnswerModel
from router.training.batch import Example, collate

LABELS = 48  # judged together: the logits of their tokens are held at once
MOST_ROWS = 60
MOST_PAIRS = 2400  # of row and label: every label of every row goes through the model


def ranked_rows(task: Task) -> list[int]:
    """Places of the rows whose labels are ranked: all, or a draw by a fixed seed; none without labels."""
    count = min(len(task.rows), MOST_ROWS, MOST_PAIRS // len(task.labels)) if task.labels else 0
    return sorted(random.Random(0).sample(range(len(task.rows)), count))


def rank(
    model: AnswerModel, subject: Subject, asking: Asking, task: Task, rows: Sequence[int], title: str
) -> Scorer:
    """How often the likeliest label is the gold one, over `rows`."""
    labels = [subject.rendering.answer(label) for label in task.labels]
    right = []
    with bar(title, len(rows)) as done:
        for row in rows:
            found = likeliest(model, asking.examples[row].prompt, labels)
            right.append(task.labels[found] == task.rows[row].response)
            done()
    return MeanScorer(right)


def likeliest(model: AnswerModel, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    """Which of `answers` the model finds likeliest after `prompt`, by nats per token.

    Per token, so that long names are not at a loss (Holtzman et al. 2021 discuss the choices,
    https://aclanthology.org/2021.emnlp-main.564).
    """
    rows = [Example(tuple(prompt), tuple(answer)) for answer in answers]
    losses = []
    for start in range(0, len(rows), LABELS):
        nats, tokens, _ = model.judge(collate(rows[start : start + LABELS]).to(model.model.device))
        losses.append(nats / tokens)
    return int(torch.cat(losses).argmin())
