"""The report card: what was measured, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.evaluation.answering import Speaker, rank
from router.evaluation.generalization import row_losses
from router.evaluation.metrics import Resampled, Task, resample
from router.evaluation.scoring import scores
from router.evaluation.subject import Arm, Asking, Subject
from router.training.batch import AnswerModel

# Asks one arm all questions and scores what comes back.


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


SCHEMA = 2
SAMPLES = 12  # answers shown


def report_card(
    facts: Mapping[str, Any],
    arms: Mapping[Arm, Measured],
    sections: Mapping[str, Any],
    shown: Sequence[Any],
) -> dict[str, Any]:
    """`report.json`, as docs/training.md describes it.

    `facts` say what was measured on what; `sections` are what was found beside the scores.
    """
    adapter = arms[Arm.ADAPTER]
    return {
        "schema": SCHEMA,
        **facts,
        "arms": {arm.value: _arm(measured) for arm, measured in arms.items()},
        "gains": {
            f"adapter - {arm.value}": _gain(adapter, other)
            for arm, other in arms.items()
            if arm is not Arm.ADAPTER
        },
        **sections,
        "samples": list(shown),
    }


def _arm(measured: Measured) -> dict[str, Any]:
    return {
        "score": measured.score.rounded(),
        "format_blind": measured.blind.rounded(),
        **({"likeliest_label": measured.ranked.rounded()} if measured.ranked else {}),
        "parts": {name: part.rounded() for name, part in measured.parts.items()},
        "loss_per_gold_token": round(measured.loss.value, 6),
        "prompt_tokens": round(measured.prompt_tokens, 1),
        "answer_tokens": round(measured.answer_tokens, 1),
    }


def _gain(adapter: Measured, other: Measured) -> dict[str, Any]:
    ranked = adapter.ranked.minus(other.ranked) if adapter.ranked and other.ranked else None
    return {
        "score": adapter.score.minus(other.score).rounded(),
        "format_blind": adapter.blind.minus(other.blind).rounded(),
        **({"likeliest_label": ranked.rounded()} if ranked else {}),
        "loss_per_gold_token": adapter.loss.minus(other.loss).rounded(),
    }
