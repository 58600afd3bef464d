"""Batched greedy answers with plain transformers: slow, simple, and the judge of everything faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def greedy_tokens(
    model: Any, prompts: Sequence[Sequence[int]], ends: Sequence[int], max_tokens: int, batch: int = 32
) -> list[list[int]]:
    """New tokens for each prompt, without the end token. Prompts of like length go together."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        made = _one_batch(model, [prompts[row] for row in rows], ends, max_tokens)
        for row, tokens in zip(rows, made, strict=True):
            answers[row] = tokens
    return answers


def _one_batch(
    model: Any, prompts: Sequence[Sequence[int]], ends: Sequence[int], limit: int
) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), ends[0])
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    made = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=list(ends),
        pad_token_id=ends[0],
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return [_until(tokens, ends) for tokens in made[:, width:].tolist()]


def _until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    return next((tokens[:place] for place, token in enumerate(tokens) if token in ends), tokens)
