"""The arms of a comparison."""

from __future__ import annotations

from router.evaluation.answering import Answering
from router.evaluation.subject import Arm, Asking, Subject
from router.training.data import Row


def test_arms_differ_only_in_what_is_shown(staged: tuple[Subject, Answering, dict[Arm, Asking]]) -> None:
    subject, _, askings = staged
    assert askings[Arm.BASE].examples == askings[Arm.ADAPTER].examples
    text = subject.rendering.tokenizer.decode(askings[Arm.SHOTS].examples[0].prompt)
    assert text.count("<|im_start|>user") == 4
    assert text.count("Name the colour.") == 1
    assert subject.rendering.prompt("q?") == subject.rendering.example(Row("q?", "a", "")).prompt
    plain = subject.losses(Arm.BASE, askings[Arm.BASE].examples)
    assert plain.nats.sum() > subject.losses(Arm.ADAPTER, askings[Arm.ADAPTER].examples).nats.sum()
