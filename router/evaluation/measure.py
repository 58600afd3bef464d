"""Asks one arm all questions and scores what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from router.evaluation.arms import Asking
from router.evaluation.bootstrap import Resampled, resample
from router.evaluation.losses import row_losses
from router.evaluation.metrics import Task
from router.evaluation.ranking import rank
from router.evaluation.scoring import scores
from router.evaluation.speaker import Speaker
from router.evaluation.subject import Subject
from router.training.answers import AnswerModel


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm's results; `ranked` only where there are labels. Lengths are means, in tokens."""

    answers: tuple[str, ...]
    score: Resampled
    blind: Resampled
    ranked: Resampled | None
    loss: Resampled
    prompt_tokens: float
    answer_tokens: float
    parts: Mapping[str, Resampled] = field(default_factory=dict)


def measure(
    subject: Subject, speaker: Speaker, asking: Asking, task: Task, ranked: Sequence[int]
) -> Measured:
    """Greedy answers and their scores, the loss on the gold answers, the likeliest label of rows `ranked`."""
    title, count = asking.arm.value.replace("_", " "), len(task.rows)
    given = speaker.answers([example.prompt for example in asking.examples], title)
    answers = tuple(answer.text for answer in given)
    judged = scores(task, answers)
    with subject.answering_as(asking.arm):
        model = AnswerModel(subject.model)
        losses = row_losses(model, asking.examples)
        likeliest = rank(model, subject, asking, task, ranked, f"{title}, labels") if ranked else None
        model.close()
    return Measured(
        answers=answers,
        score=resample(judged.score, count),
        blind=resample(judged.blind, count),
        ranked=resample(likeliest, len(ranked)) if likeliest else None,
        loss=resample(losses, count),
        prompt_tokens=asking.prompt_tokens,
        answer_tokens=sum(answer.usage.completion_tokens for answer in given) / count,
        parts={name: resample(part, count) for name, part in judged.parts.items()},
    )
