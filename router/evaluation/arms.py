"""The three arms of a comparison: the same questions, asked in three ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from router.training.batch import Example
from router.training.data import Row
from router.training.rendering import Rendering


class Arm(StrEnum):
    """Who answers, and what it is shown first."""

    BASE = "base"  # the bare question, under the adapter's own prompt
    SHOTS = "base_with_examples"  # with worked examples before it
    ADAPTER = "adapter"  # the bare question


@dataclass(frozen=True, slots=True)
class Asking:
    """Questions of one arm, encoded with their gold answers."""

    arm: Arm
    examples: tuple[Example, ...]

    @property
    def prompt_tokens(self) -> float:
        """Mean length of a prompt."""
        return sum(len(example.prompt) for example in self.examples) / len(self.examples)


def ask(arm: Arm, rows: Sequence[Row], rendering: Rendering, shots: Sequence[Row]) -> Asking:
    """Encode `rows` for an arm; only the arm with examples sees `shots`."""
    before = shots if arm is Arm.SHOTS else ()
    return Asking(arm, tuple(rendering.example(row, before) for row in rows))


def worked_examples(train: Sequence[Row], count: int) -> list[Row]:
    """The first `count` training rows with distinct answers: fixed, and not picked by result."""
    distinct = {row.response: row for row in reversed(train)}
    return [row for row in train if distinct[row.response] is row][:count]
