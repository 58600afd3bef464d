"""The arms of a comparison."""

from __future__ import annotations

from router.extensions.training.data import Row
from router.extensions.training.evaluation.answering import AnsweringEngine
from router.extensions.training.evaluation.subject import Arm, Questions, Subject


def test_arms_differ_only_in_what_is_shown(
    staged: tuple[Subject, AnsweringEngine, dict[Arm, Questions]],
) -> None:
    subject, _, questions = staged
    assert questions[Arm.BASE].examples == questions[Arm.ADAPTER].examples
    text = subject.rendering.tokenizer.decode(questions[Arm.SHOTS].examples[0].prompt)
    assert text.count("<|im_start|>user") == 4
    assert text.count("Name the colour.") == 1
    assert subject.rendering.prompt("q?") == subject.rendering.example(Row("q?", "a", "")).prompt
    plain = subject.losses(Arm.BASE, questions[Arm.BASE].examples)
    assert plain.nats.sum() > subject.losses(Arm.ADAPTER, questions[Arm.ADAPTER].examples).nats.sum()
