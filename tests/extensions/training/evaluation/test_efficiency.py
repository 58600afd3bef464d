"""What an answer costs when nothing else runs."""

from __future__ import annotations

import pytest

from router.extensions.training.evaluation.exam import measure_efficiency
from router.extensions.training.evaluation.report import efficiency_verdict
from router.extensions.training.evaluation.subject import (
    Answerer,
    AnsweringEngine,
    ComparedArm,
    EvaluationSubject,
    Questions,
)
from router.types import SamplingParams


def test_efficiency_of_single_requests(
    staged: tuple[EvaluationSubject, AnsweringEngine, dict[ComparedArm, Questions]],
) -> None:
    _, engine, questions = staged
    base = Answerer(engine, SamplingParams(max_tokens=4))
    compared = {arm: questions[arm] for arm in (ComparedArm.SHOTS, ComparedArm.BASE)}
    section = measure_efficiency(
        compared, dict.fromkeys(ComparedArm, base), {ComparedArm.SHOTS: 0.0, ComparedArm.BASE: 0.25}
    )
    shots, plain = (section["arms"][name] for name in ("base_with_examples", "base"))
    assert section["rows"] == 9
    assert shots["cached_tokens"] > plain["prompt_tokens"]
    assert plain["answer_tokens"] <= 4
    assert plain["seconds"] > 0
    assert plain["seconds_per_point"] == pytest.approx(4 * plain["seconds"], abs=1e-3)
    assert shots["seconds_per_point"] is None


@pytest.mark.parametrize(
    ("adapter", "shots", "said"),
    [
        (0.2, 0.9, "takes the adapter 0.20 s, 4.5 times less than the base with examples (0.90 s)."),
        (0.9, 0.2, "4.5 times more than"),
        (0.2, None, "the base with examples gave none"),
        (None, 0.2, "The adapter gave no right answer"),
    ],
)
def test_efficiency_is_said_plainly(adapter: float | None, shots: float | None, said: str) -> None:
    seconds = {"adapter": adapter, "base_with_examples": shots}
    assert said in efficiency_verdict({name: {"seconds_per_point": value} for name, value in seconds.items()})
