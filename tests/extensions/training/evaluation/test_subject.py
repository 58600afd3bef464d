"""The arms of a comparison."""

from __future__ import annotations

from router.extensions.training.data import TrainingRow
from router.extensions.training.evaluation.subject import (
    AnsweringEngine,
    ComparedArm,
    EvaluationSubject,
    Questions,
)


def test_arms_differ_only_in_what_is_shown(
    staged: tuple[EvaluationSubject, AnsweringEngine, dict[ComparedArm, Questions]],
) -> None:
    subject, _, questions = staged
    assert questions[ComparedArm.BASE] == questions[ComparedArm.ADAPTER]
    text = subject.rendering.tokenizer.decode(questions[ComparedArm.SHOTS][0].prompt)
    assert text.count("<|im_start|>user") == 4
    assert text.count("Name the colour.") == 1
    assert subject.rendering.prompt("q?") == subject.rendering.example(TrainingRow("q?", "a", "")).prompt
    plain = subject.losses(ComparedArm.BASE, questions[ComparedArm.BASE])
    assert plain.nats.sum() > subject.losses(ComparedArm.ADAPTER, questions[ComparedArm.ADAPTER]).nats.sum()
