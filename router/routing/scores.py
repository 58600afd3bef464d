"""From what a classifier returned to confidences in [0, 1], or the finding that it is nonsense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

from router.routing.classifier import Scores
from router.types import VoteError

EVIDENCE_LIMIT = 500
SLACK = 1e-6  # float32 probabilities may sum or round past their ends


@dataclass(frozen=True, slots=True)
class Answer:
    """One classifier's answer to one request: confidences of labels, a refusal, or what went wrong."""

    confidences: Mapping[str, float] = field(default_factory=dict)
    declined: bool = False
    error: VoteError | Literal[""] = ""
    evidence: str = ""


DECLINED = Answer(declined=True)
INVALID = Answer(error=VoteError.INVALID)


def answers(returned: object, count: int) -> tuple[Answer, ...]:
    """One answer for each of `count` requests; all are invalid if the batch has another shape."""
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence) or len(returned) != count:
        return (INVALID,) * count
    return tuple(_answer(entry) for entry in returned)


def _answer(entry: object) -> Answer:
    if entry is None:
        return DECLINED
    if not isinstance(entry, Scores) or not isinstance(entry.evidence, str):
        return INVALID
    confidences = normalise(entry.values, entry.kind)
    if confidences is None:
        return INVALID
    return Answer(confidences, evidence=entry.evidence[:EVIDENCE_LIMIT])


def normalise(values: object, kind: object) -> dict[str, float] | None:
    """Confidences in [0, 1]: probabilities as they are, logits by softmax, similarities cut at 0.

    None if a label is no text, a value is no finite number or lies outside the range of its kind.
    """
    if not isinstance(values, Mapping) or not values:
        return None
    numbers: dict[str, float] = {}
    for label, value in values.items():
        if not isinstance(label, str) or isinstance(value, bool) or not isinstance(value, Real):
            return None
        numbers[label] = float(value)
    if not all(map(math.isfinite, numbers.values())):
        return None
    if kind == "logit":
        return _softmax(numbers)
    low = {"probability": 0.0, "similarity": -1.0}.get(str(kind))
    if low is None or not all(low - SLACK <= v <= 1 + SLACK for v in numbers.values()):
        return None
    return {label: min(max(value, 0.0), 1.0) for label, value in numbers.items()}


def _softmax(logits: Mapping[str, float]) -> dict[str, float]:
    top = max(logits.values())
    powers = {label: math.exp(value - top) for label, value in logits.items()}
    total = sum(powers.values())
    return {label: power / total for label, power in powers.items()}
