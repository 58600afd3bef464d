"""Asks one arm all questions and scores what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.evaluation.arms import Asking
from router.evaluation.bootstrap import Resampled, resample
from router.evaluation.forced import forced, likeliest
from router.evaluation.metrics import (
    ChrfScorer,
    MeanScorer,
    Scorer,
    best_part,
    exact_match,
    names_only,
)
from router.evaluation.subject import Subject
from router.training.answers import AnswerModel
from router.training.data import Row
from router.training.greedy import greedy_tokens


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked and how answers are judged. `labels` is empty unless answers are names of a list."""

    metric: str
    rows: Sequence[Row]
    labels: Sequence[str]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm's results; `ranked` only where there are labels."""

    answers: tuple[str, ...]
    score: Resampled
    blind: Resampled
    ranked: Resampled | None
    loss: float
    prompt_tokens: float
    answer_tokens: float


def measure(subject: Subject, asking: Asking, task: Task) -> Measured:
    """Greedy answers, their scores, the loss on the gold answers, and for labels the likeliest one."""
    prompts = [example.prompt for example in asking.examples]
    with subject.answering_as(asking.arm):
        tokens = greedy_tokens(subject.model, prompts, subject.rendering.ends, task.max_tokens)
        model = AnswerModel(subject.model)
        loss = forced(model, asking.examples).loss
        ranked = _rank(model, subject, asking, task) if task.labels else None
        model.close()
    answers = tuple(subject.rendering.text(answer) for answer in tokens)
    score, blind = scorers(task, answers)
    count = len(task.rows)
    return Measured(
        answers=answers,
        score=resample(score, count),
        blind=resample(blind, count),
        ranked=resample(ranked, count) if ranked else None,
        loss=loss,
        prompt_tokens=asking.prompt_tokens,
        answer_tokens=sum(map(len, tokens)) / count,
    )


def scorers(task: Task, answers: Sequence[str]) -> tuple[Scorer, Scorer]:
    """The task's metric, and its format-blind twin."""
    golds = [row.response for row in task.rows]
    pairs = list(zip(answers, golds, strict=True))
    if task.metric == "chrf":
        return ChrfScorer(answers, golds), ChrfScorer([best_part(*pair) for pair in pairs], golds)
    exact = MeanScorer([exact_match(*pair) for pair in pairs])
    return exact, MeanScorer([names_only(*pair, task.labels) for pair in pairs])


def _rank(model: AnswerModel, subject: Subject, asking: Asking, task: Task) -> Scorer:
    labels = [subject.rendering.answer(label) for label in task.labels]
    chosen = (task.labels[likeliest(model, example.prompt, labels)] for example in asking.examples)
    return MeanScorer([label == row.response for label, row in zip(chosen, task.rows, strict=True)])
