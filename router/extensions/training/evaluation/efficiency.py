"""Efficiency: what an answer costs when nothing else runs, adapter against base with worked examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.extensions.training.evaluation.answering import Answerer, EngineAnswer
from router.extensions.training.evaluation.subject import ComparedArm, Questions

ROWS = 20


def measure_efficiency(
    questions: Mapping[ComparedArm, Questions],
    answerers: Mapping[ComparedArm, Answerer],
    points: Mapping[ComparedArm, float],
) -> dict[str, Any]:
    """Ask the first `ROWS` questions one request after another, the arms in turn.

    `points` is what an answer of an arm earns on average on all rows, 0 to 1: the share of right answers,
    or the mean score. Each arm answers once before, so that weights and shared prompt are warm.

    Returns {"rows", "arms": {ARM: {"prompt_tokens", "cached_tokens", "answer_tokens", "seconds", "points",
    "seconds_per_point"}}}: means over answers; `cached_tokens` of the prompt were not computed again,
    `seconds_per_point` is `seconds` / `points`, None if nothing is right.
    """
    count = min(ROWS, *(len(asked.examples) for asked in questions.values()))
    taken: dict[ComparedArm, list[EngineAnswer]] = {arm: [] for arm in questions}
    for arm, asked in questions.items():
        answerers[arm].alone(asked.examples[-1].prompt)
    for place in range(count):
        for arm, asked in questions.items():
            taken[arm].append(answerers[arm].alone(asked.examples[place].prompt))
    return {
        "rows": count,
        "arms": {arm.value: _costs(answers, points[arm]) for arm, answers in taken.items()},
    }


def _costs(answers: Sequence[EngineAnswer], points: float) -> dict[str, float | None]:
    def mean(name: str) -> float:
        return sum(float(getattr(answer.usage, name)) for answer in answers) / len(answers)

    seconds = mean("total_time")
    return {
        "prompt_tokens": round(mean("prompt_tokens"), 1),
        "cached_tokens": round(mean("cached_tokens"), 1),
        "answer_tokens": round(mean("completion_tokens"), 1),
        "seconds": round(seconds, 4),
        "points": round(points, 4),
        "seconds_per_point": round(seconds / points, 4) if points > 0 else None,
    }
