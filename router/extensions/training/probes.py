"""Probes: prompts with the answers that the trained adapter really gives, by plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from router.extensions.training.batch import AnswerModel, Example, Rendering, collate
from router.extensions.training.data import TrainingRow
from router.registry.format.manifest import Match, Probe

LONGEST = 24  # tokens of an answer
BATCH = 32  # rows asked or judged together
SHORTLIST = 4  # candidates asked for each probe wanted
# Of each token's probability over the second likeliest: near ties fall differently on other kernels.
LEAD = 0.1


def choose_probes(model: Any, rendering: Rendering, rows: Sequence[TrainingRow], count: int) -> list[Probe]:
    """`count` validation rows the adapter is surest of, with distinct answers that the base does not give.

    Sure ones, so that a probe does not turn on the last bit of a sum on another machine.
    """
    asked = [(row, example) for row in rows if len((example := rendering.example(row)).answer) <= LONGEST]
    sureness = _nats_per_token(model, [example for _, example in asked])
    ranked = sorted(range(len(asked)), key=sureness.__getitem__)
    distinct = list({asked[place][0].response: place for place in reversed(ranked)}.values())[::-1]
    shortlist = [asked[place] for place in distinct[: SHORTLIST * count]]
    prompts = [example.prompt for _, example in shortlist]
    trained = greedy_tokens(model, prompts, rendering.ends, LONGEST + 1)
    with model.disable_adapter():
        plain = greedy_tokens(model, prompts, rendering.ends, LONGEST + 1)
    changed = [
        Probe(row.prompt, rendering.text(answer), Match.EXACT, LONGEST + 1)
        for (row, _), answer, base in zip(shortlist, trained, plain, strict=True)
        if answer != base and 0 < len(answer) <= LONGEST
    ]
    return [probe for probe in changed if least_lead(model, rendering, probe) >= LEAD][:count]


def least_lead(model: Any, rendering: Rendering, probe: Probe) -> float:
    """The closest that any second choice comes to a token of the answer, its end included; in probability."""
    answers = AnswerModel(model)
    with torch.no_grad():
        example = rendering.example(TrainingRow(probe.prompt, probe.expect, ""))
        logits, _ = answers.logits(collate([example]).to(model.device))
    answers.close()
    first, second = logits.softmax(-1).topk(2).values.unbind(-1)
    return float((first - second).min())


def _nats_per_token(model: Any, examples: Sequence[Example]) -> list[float]:
    answers = AnswerModel(model)
    sureness = [torch.zeros(0)]
    for start in range(0, len(examples), BATCH):
        nats, tokens, _ = answers.judge(collate(examples[start : start + BATCH]).to(model.device))
        sureness.append((nats / tokens).cpu())
    answers.close()
    return torch.cat(sureness).tolist()


@torch.no_grad()
def greedy_tokens(
    model: Any, prompts: Sequence[Sequence[int]], ends: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """New tokens for each prompt, without the end token. Prompts of like length go together.

    Slow, simple, and the judge of everything faster.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
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
