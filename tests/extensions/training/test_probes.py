"""Which validation rows become probes, and the answers they hold."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from router.errors import ConfigError
from router.extensions.training import probes
from router.extensions.training.data import Example, Rendering, TrainingRow
from router.extensions.training.probes import AnswerRule, GreedyAnswer, choose_probes, greedy_tokens
from router.types import Constraint, PromptTemplate

RENDERING: Any = SimpleNamespace(
    example=lambda row: Example((1,), tuple(map(ord, row.response))),
    prompt=lambda text: (1,),
    ends=[0],
    text=lambda tokens: "".join(map(chr, tokens)),
)
MODEL: Any = SimpleNamespace(device=torch.device("cpu"), disable_adapter=nullcontext)
ROWS = [TrainingRow(f"say {letter}", letter, "here") for letter in "abc"]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the adapter answer with these texts and leads, and the base with those."""

    def given(trained: list[tuple[str, float]], base: list[tuple[str, float]]) -> None:
        spoken = iter([trained, base])

        def greedy(*_: Any) -> list[GreedyAnswer]:
            return [GreedyAnswer(tuple(map(ord, text)), lead) for text, lead in next(spoken)]

        monkeypatch.setattr(probes, "_nats_per_token", lambda model, examples: [0.1, 0.2, 0.3])
        monkeypatch.setattr(probes, "greedy_answers", greedy)

    return given


def chosen(rule: AnswerRule) -> list[str]:
    return [probe.expect for probe in choose_probes(MODEL, RENDERING, ROWS, 2, rule)]


def test_an_answer_with_a_near_tie_is_no_probe(answers: Any) -> None:
    answers([("a", 0.9), ("b", 0.05), ("c", 0.9)], [("x", 0.0)] * 3)
    assert chosen(AnswerRule()) == ["a", "c"]


def test_an_answer_that_the_base_gives_is_no_probe(answers: Any) -> None:
    answers([("a", 0.9), ("b", 0.9), ("c", 0.9)], [("a", 0.0), ("x", 0.0), ("x", 0.0)])
    assert chosen(AnswerRule()) == ["b", "c"]


def test_an_answer_that_a_stop_text_would_end_is_no_probe(answers: Any) -> None:
    answers([("a", 0.9), ("b", 0.9), ("c", 0.9)], [("x", 0.0)] * 3)
    assert chosen(AnswerRule(stop=["b"])) == ["a", "c"]


def test_an_answer_that_was_cut_off_is_no_probe(answers: Any) -> None:
    answers([("a" * 25, 0.9), ("b" * 24, 0.9), ("c", 0.9)], [("x", 0.0)] * 3)
    assert chosen(AnswerRule()) == ["b" * 24, "c"]


def test_a_prompt_that_is_too_long_for_a_probe_is_none(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers([("a", 0.9)], [("x", 0.0)])
    rows = [ROWS[0], TrainingRow("x" * 4_001, "b", "here")]
    assert [p.prompt for p in choose_probes(MODEL, RENDERING, rows, 2, AnswerRule())] == ["say a"]


# -- on a model

PROMPTS = [(5, 6, 7, 8, 9), (10,), (11, 12, 13), (14, 15)]
TEXTS = ["which one?", "and now?", "why?"]
CHOICES = Constraint("choices", choices=("open a ticket", "open the door", "close"))


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


@pytest.fixture
def rendering(tiny_base: Path) -> Rendering:
    return Rendering.of(AutoTokenizer.from_pretrained(tiny_base), PromptTemplate())


def texts(rule: AnswerRule, model: Any, rendering: Rendering) -> list[str]:
    return [rendering.text(answer.tokens) for answer in rule.answers(model, rendering, TEXTS)]


def test_batched_answers_equal_answers_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ROWS_AT_ONCE", 3)
    together = greedy_tokens(model, PROMPTS, [1], 6)
    assert together == [greedy_tokens(model, [prompt], [1], 6)[0] for prompt in PROMPTS]
    assert all(len(answer) <= 6 for answer in together)


def test_end_token_ends_and_is_left_out(model: Any) -> None:
    [free] = greedy_tokens(model, [(5, 6, 7)], [1], 6)
    stopped = greedy_tokens(model, [(5, 6, 7)], [1, free[2]], 6)[0]
    assert stopped == free[: free.index(free[2])]


def test_answers_are_held_to_the_choices(model: Any, rendering: Rendering) -> None:
    assert set(texts(AnswerRule(CHOICES), model, rendering)) <= set(CHOICES.choices)
    assert not set(texts(AnswerRule(), model, rendering)) & set(CHOICES.choices)


@pytest.mark.parametrize("preferred", [0, 1, 2])
def test_answers_follow_the_prior_of_the_choices(model: Any, rendering: Rendering, preferred: int) -> None:
    prior = tuple(20.0 * (place == preferred) for place in range(3))
    rule = AnswerRule(Constraint("choices", choices=CHOICES.choices, prior=prior))
    assert set(texts(rule, model, rendering)) == {CHOICES.choices[preferred]}


def test_a_choice_between_two_equals_has_no_lead(model: Any, rendering: Rendering) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    answers = AnswerRule(CHOICES).answers(model, rendering, TEXTS)
    assert [answer.lead for answer in answers] == [0.0] * 3


def test_answers_are_held_to_what_a_template_makes_of_the_prompt(model: Any, rendering: Rendering) -> None:
    rule = AnswerRule(Constraint("from_prompt", "quote"))
    asked = ["Passage: abcdefgh\n\nQuestion: which?", "which?"]
    quoted, without_passage = rule.answers(model, rendering, asked)
    assert rendering.text(quoted.tokens)
    assert rendering.text(quoted.tokens) in "abcdefgh"
    assert without_passage.tokens == AnswerRule().answers(model, rendering, asked)[1].tokens


def test_a_template_that_is_not_there_is_an_error_before_training(model: Any, rendering: Rendering) -> None:
    with pytest.raises(ConfigError, match="there is no template 'nonsense'"):
        AnswerRule(Constraint("from_prompt", "nonsense")).check(model, rendering)
