"""Asks one arm all questions and scores what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.evaluation.arms import Asking
from router.evaluation.bootstrap import Resampled, resample
from router.evaluation.forced import forced, likeliest
from router.evaluation.metrics import MeanScorer, Scorer, Task
from router.evaluation.scoring import scores
from router.evaluation.subject import Subject
from router.training.answers import AnswerModel
from router.training.greedy import greedy_tokens


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
    parts: Mapping[str, Resampled] = field(default_factory=dict)


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
    judged = scores(task, answers)
    count = len(task.rows)
    return Measured(
        answers=answers,
        score=resample(judged.score, count),
        blind=resample(judged.blind, count),
        ranked=resample(ranked, count) if ranked else None,
        loss=loss,
        prompt_tokens=asking.prompt_tokens,
        answer_tokens=sum(map(len, tokens)) / count,
        parts={name: resample(part, count) for name, part in judged.parts.items()},
    )


def _rank(model: AnswerModel, subject: Subject, asking: Asking, task: Task) -> Scorer:
    labels = [subject.rendering.answer(label) for label in task.labels]
    chosen = (task.labels[likeliest(model, example.prompt, labels)] for example in asking.examples)
    return MeanScorer([label == row.response for label, row in zip(chosen, task.rows, strict=True)])
