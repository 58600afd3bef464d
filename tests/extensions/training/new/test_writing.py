"""The numbers of a recipe that follow from the data."""

from __future__ import annotations

import pytest

from router.extensions.training.data import Example
from router.extensions.training.new.rows import Columns, PromptPair
from router.extensions.training.new.scaffold import default_system, guess_metric, labels_of, make_plan


def pairs(count: int, groups: int = 0) -> list[PromptPair]:
    return [PromptPair(f"q{n}", f"a{n % 4}", f"g{n % groups}" if groups else f"q{n}") for n in range(count)]


@pytest.mark.parametrize(
    ("answers", "labels", "metric"),
    [
        (["b", "a", "a", "a", "b", "a", "a", "b"] * 5, ("a", "b"), "exact_match"),
        ([f"name {n}" for n in range(40)], (), "token_f1"),
        ([f"{n} " + "word " * 30 for n in range(40)], (), "rouge_l"),
        (["a much too long label of nine words indeed"] * 40, (), "token_f1"),
    ],
)
def test_the_metric_follows_the_answers(answers: list[str], labels: tuple[str, ...], metric: str) -> None:
    train = [PromptPair(str(n), answer.strip(), str(n)) for n, answer in enumerate(answers)]
    assert labels_of(train) == labels
    assert guess_metric(train, labels) == metric


def test_system_text() -> None:
    assert default_system(("b", "a"), Columns("x", "y")) == "Answer with one of these and nothing else: a, b."
    assert default_system((), Columns("job_title", "Team")) == "Given the job title, answer with the team."
    assert default_system((), Columns("question", "answer")) == ""


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(60, 8, 30), (300, 16, 57), (3000, 16, 188), (20_000, 16, 400)]
)
def test_steps_grow_with_the_data(count: int, batch: int, steps: int) -> None:
    train = pairs(count)
    examples = [Example((1,) * 20, (2,) * 3), Example((1,) * 5, (2,) * 9)]
    plan = make_plan({"train": train, "valid": [], "test": []}, examples, labels_of(train), 0)
    assert (plan.batch, plan.steps) == (batch, steps)
    assert (plan.max_tokens, plan.answer_tokens) == (23, 13)
    assert plan.examples[:4] == ("q0", "q1", "q2", "q3")
    assert len(plan.examples) == min(count, 128)


def test_long_prompts_are_no_routing_examples() -> None:
    train = [PromptPair("long " * 200, "a", ""), *pairs(20)]
    plan = make_plan({"train": train}, [Example((1,), (2,))], (), 7)
    assert plan.examples[0] == "q0"
    assert (plan.steps, plan.metric) == (7, "token_f1")
