"""Answers of the engine that serves, on a tiny base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from router.errors import InvalidRequest
from router.extensions.training.base import load_base
from router.extensions.training.evaluation.subject import (
    AnsweringEngine,
    ComparedArm,
    EvaluationSubject,
    Questions,
    sharing_copy,
)
from router.types import Constraint, SamplingParams


def greedy(subject: EvaluationSubject, prompt: tuple[int, ...]) -> list[int]:
    """Eight tokens of plain generation, without the end token."""
    ends = list(subject.rendering.ends)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": ends, "pad_token_id": ends[0]}
    made = subject.model.generate(input_ids=torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    return [token for token in made if token not in ends]


@pytest.mark.slow
def test_engine_answers_as_plain_generation_does(
    staged: tuple[EvaluationSubject, AnsweringEngine, dict[ComparedArm, Questions]],
) -> None:
    """All but one of nine: the tiny base's random weights may leave next to nothing between two tokens."""
    subject, engine, questions = staged
    digest = engine.load(subject.folder)
    words = [tuple(subject.base.tokenizer(text)["input_ids"]) for text in ("thing 3?", "a longer colour")]
    for arm, asked in questions.items():
        prompts = [*(example.prompt for example in asked[:7]), *words]
        adapter = digest if arm is ComparedArm.ADAPTER else None
        given = engine.answers(prompts, SamplingParams(max_tokens=8), adapter)
        assert all(answer.usage.prompt_tokens == len(p) for answer, p in zip(given, prompts, strict=True))
        with subject.judged_as(arm):
            plain = [greedy(subject, prompt) for prompt in prompts]
        texts = [subject.rendering.text(tokens) for tokens in plain]
        assert sum(answer.text == text for answer, text in zip(given, texts, strict=True)) >= 8
        assert all(texts[7:])
    engine.unload(digest)


def test_stop_strings_end_an_answer(
    staged: tuple[EvaluationSubject, AnsweringEngine, dict[ComparedArm, Questions]],
) -> None:
    subject, engine, _ = staged
    prompt = subject.base.tokenizer("colour of thing 3?")["input_ids"]
    [whole] = engine.answers([prompt], SamplingParams(max_tokens=8))
    cut = engine.answers([prompt], SamplingParams(max_tokens=8, stop=(whole.text[:2],)))[0]
    assert (len(whole.text), cut.text) == (8, "")
    assert cut.usage.completion_tokens < whole.usage.completion_tokens


@pytest.mark.slow
def test_templates_read_the_questions(
    staged: tuple[EvaluationSubject, AnsweringEngine, dict[ComparedArm, Questions]],
) -> None:
    subject, engine, _ = staged
    prompt = subject.base.tokenizer("colour of thing 3?")["input_ids"]
    quoting = SamplingParams(max_tokens=8, constraint=Constraint("from_prompt", "quote"))
    held, free = engine.answers([prompt] * 2, quoting, texts=["Passage: red\nQuestion: which?", "which?"])
    assert held.text == engine.answers([prompt], quoting, texts=["Passage: red"])[0].text == "red"
    assert free == replace(engine.answers([prompt], SamplingParams(max_tokens=8))[0], usage=free.usage)
    sure = engine.answers([prompt], SamplingParams(max_tokens=8, logprobs=1))[0]
    assert 0 < sure.sureness < 1
    table = SamplingParams(max_tokens=40, constraint=Constraint("from_prompt", "sql"))
    assert engine.answers([prompt], table, texts=["Tables: a(b)"])[0].text.startswith("SELECT ")
    with pytest.raises(InvalidRequest, match="there is no template"):
        engine.answers([prompt], SamplingParams(constraint=Constraint("from_prompt", "none")), texts=[""])


def test_the_copy_shares_weights_and_leaves_the_model_whole(trained: Path) -> None:
    model = load_base(str(trained / "base"), "cpu").model
    copied = sharing_copy(model)
    weights = dict(model.named_parameters())
    assert all(value.data_ptr() == weights[name].data_ptr() for name, value in copied.named_parameters())
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    copied.model.layers[0] = torch.nn.Identity()
    copied.float()
    assert model.dtype == torch.bfloat16
    assert not isinstance(model.model.layers[0], torch.nn.Identity)
