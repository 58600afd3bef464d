from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from router.training.probes import greedy_tokens

PROMPTS = [(5, 6, 7, 8, 9), (10,), (11, 12, 13), (14, 15)]


def test_batched_answers_equal_answers_alone(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    together = greedy_tokens(model, PROMPTS, [1], 6, batch=3)
    assert together == [greedy_tokens(model, [prompt], [1], 6)[0] for prompt in PROMPTS]
    assert all(len(answer) <= 6 for answer in together)


def test_end_token_ends_and_is_left_out(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    [free] = greedy_tokens(model, [(5, 6, 7)], [1], 6)
    stopped = greedy_tokens(model, [(5, 6, 7)], [1, free[2]], 6)[0]
    assert stopped == free[: free.index(free[2])]
