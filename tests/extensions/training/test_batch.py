"""Batches, what a model makes of them, and the order of rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from router.errors import NotActivated
from router.extensions.training.data import IGNORED, WINDOW, AnswerModel, Example, collate, rows_of_step

tokens = st.lists(st.integers(2, 5), min_size=1, max_size=6).map(tuple)
examples = st.lists(st.builds(Example, tokens, tokens), min_size=1, max_size=5)


@given(examples)
def test_every_row_can_be_read_back(rows: list[Example]) -> None:
    batch = collate(rows)
    shared = batch.prefix.shape[1]
    for row, example in enumerate(rows):
        whole = example.prompt + example.answer
        seen = batch.prefix[0].tolist() + batch.tokens[row].tolist()
        assert tuple(seen[: len(whole) - 1]) == whole[:-1]
        wanted = [
            (place + shared + 1, token)
            for place, token in enumerate(batch.targets[row].tolist())
            if token != IGNORED
        ]
        assert wanted == list(enumerate(whole))[len(example.prompt) :]


@given(examples)
def test_a_prompt_token_stays_outside_the_prefix(rows: list[Example]) -> None:
    assert collate(rows).prefix.shape[1] < min(len(example.prompt) for example in rows)


def test_prefix_is_as_long_as_it_can_be() -> None:
    batch = collate([Example((1, 2, 3, 4), (9,)), Example((1, 2, 3, 5, 6), (9,))])
    assert batch.prefix.tolist() == [[1, 2, 3]]


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


CALL = (50, 51)
LATE = [
    Example((*SHARED, 9, *CALL, 10), (11, 12)),
    Example((*SHARED, *CALL, 9, 10, *CALL), (14, *CALL, 16)),  # an answer activates nothing
    Example((*SHARED, 60, 61, *CALL, 62, 63, 64), (1,)),
]
EARLY = [Example((*CALL, *SHARED, 9), (11, 12)), Example((*CALL, *SHARED, 9, *CALL), (13,))]


@pytest.fixture
def late_model(model: torch.nn.Module) -> PeftModel:
    """An activated LoRA that changes much, and no dropout."""
    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        target_modules=["q_proj", "v_proj", "down_proj"],
        alora_invocation_tokens=list(CALL),
    )
    return get_peft_model(model, config)


def late_nats(model: PeftModel, row: Example) -> torch.Tensor:
    """As `plain_nats`, from the last invocation in the prompt on."""
    tokens = torch.tensor([row.prompt + row.answer])
    place = max(i for i in range(len(row.prompt)) if row.prompt[i : i + len(CALL)] == CALL)
    logits = model(input_ids=tokens, alora_offsets=[tokens.shape[1] - place]).logits
    logits = logits[0, len(row.prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum")


@pytest.mark.parametrize("rows", [LATE, EARLY, LATE[:1]], ids=["late", "in what all begin with", "one row"])
def test_an_activated_lora_is_trained_as_it_serves(late_model: PeftModel, rows: list[Example]) -> None:
    each = [late_nats(late_model, row) for row in rows]
    expected = sum(each) / sum(len(row.answer) for row in rows)
    expected.backward()
    trained = {name: p for name, p in late_model.named_parameters() if p.requires_grad}
    gradients = {name: p.grad.clone() for name, p in trained.items()}
    late_model.zero_grad()
    answers = AnswerModel(late_model)
    loss = answers.loss(collate(rows))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    nats, *_ = answers.judge(collate(rows))
    torch.testing.assert_close(nats, torch.stack(each).detach())
    with late_model.disable_adapter():
        plain, *_ = answers.judge(collate(rows))
    assert (plain - nats).abs().min() > 1e-3


def test_a_prompt_on_which_it_would_not_act_is_refused(late_model: PeftModel) -> None:
    with pytest.raises(NotActivated):
        AnswerModel(late_model).loss(collate([LATE[0], ROWS[0]]))


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


LENGTHS = [(place * 37) % 101 for place in range(20)]


def steps(first: int, last: int, seed: int = 1, batch: int = 4) -> list[list[int]]:
    return [rows_of_step(step, LENGTHS, batch, seed) for step in range(first, last + 1)]


def test_an_epoch_sees_every_row_once() -> None:
    for epoch in (steps(1, 5), steps(6, 10)):
        assert sorted(row for rows in epoch for row in rows) == list(range(20))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert steps(1, 5) == steps(1, 5)
    assert sorted(map(sorted, steps(1, 5))) == sorted(map(sorted, steps(6, 10)))  # one window: sorted alike
    assert steps(1, 5) != steps(6, 10)
    assert steps(1, 5) != steps(1, 5, seed=2)


def test_rows_of_like_length_go_together() -> None:
    spread = [max(LENGTHS[row] for row in rows) - min(LENGTHS[row] for row in rows) for rows in steps(1, 5)]
    assert sum(spread) < max(LENGTHS)


def test_windows_are_drawn_anew_each_epoch() -> None:
    lengths = list(range(WINDOW * 2 * 3))
    epochs = [
        [rows_of_step(epoch * WINDOW * 3 + step, lengths, 2, 0) for step in range(1, WINDOW * 3 + 1)]
        for epoch in range(2)
    ]
    assert sorted(map(sorted, epochs[0])) != sorted(map(sorted, epochs[1]))


def test_rows_left_over_wait_for_the_next_epoch() -> None:
    seen = {row for rows in steps(1, 40, batch=6) for row in rows}
    assert seen == set(range(20))
    assert all(len(rows) == 6 for rows in steps(1, 40, batch=6))


def test_batch_larger_than_the_data() -> None:
    assert sorted(rows_of_step(3, [5, 4, 6], 8, seed=0)) == [0, 1, 2]
