from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from router.training.batch import AnswerModel, Example, collate

SHARED = (5, 6, 7, 8)
ROWS = [
    Example((*SHARED, 9, 10), (11, 12)),
    Example((*SHARED, 13), (14, 15, 16)),
    Example((*SHARED, 9), (1,)),
]
APART = [Example((20, *row.prompt), row.answer) if row is ROWS[0] else row for row in ROWS]


@pytest.fixture
def model(tiny_base: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attn_implementation="eager")


def plain_nats(model: torch.nn.Module, row: Example) -> torch.Tensor:
    """The same loss, one row at a time, with nothing clever."""
    tokens = torch.tensor([row.prompt + row.answer])
    logits = model(input_ids=tokens).logits[0, len(row.prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum")


@pytest.mark.parametrize("rows", [ROWS, APART], ids=["shared prefix", "no shared prefix"])
def test_loss_and_gradients_equal_the_plain_ones(model: torch.nn.Module, rows: list[Example]) -> None:
    expected = sum(plain_nats(model, row) for row in rows) / sum(len(row.answer) for row in rows)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    answers = AnswerModel(model)
    loss = answers.loss(collate(rows))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_judge_is_per_row(model: torch.nn.Module) -> None:
    answers = AnswerModel(model)
    nats, tokens, _ = answers.judge(collate(ROWS))
    answers.close()
    expected = torch.stack([plain_nats(model, row).detach() for row in ROWS])
    torch.testing.assert_close(nats, expected)
    assert tokens.tolist() == [2, 3, 1]


def test_exact_means_greedy_decoding_gives_it(model: torch.nn.Module) -> None:
    prompt = [5, 6, 7]
    made = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    right = tuple(made[0, 3:].tolist())
    wrong = (*right[:2], (right[2] + 1) % 200)
    answers = AnswerModel(model)
    _, _, exact = answers.judge(collate([Example(tuple(prompt), right), Example(tuple(prompt), wrong)]))
    assert exact.tolist() == [True, False]


def test_close_gives_the_model_back(model: torch.nn.Module) -> None:
    before = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    answers = AnswerModel(model)
    answers.loss(collate(ROWS))
    answers.close()
    torch.testing.assert_close(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)
