"""Probes: prompts with the answers the trained adapter really gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from router.registry.format.probes import Match, Probe
from router.training.answers import AnswerModel
from router.training.batch import Example, collate
from router.training.data import Row
from router.training.greedy import greedy_tokens
from router.training.rendering import Rendering

LONGEST = 24  # tokens of an answer
SHORTLIST = 4  # candidates asked for each probe wanted
LEAD = (
    0.1  # of each token's probability over the second likeliest; near ties fall differently on other kernels
)


def choose_probes(model: Any, rendering: Rendering, rows: Sequence[Row], count: int) -> list[Probe]:
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
        example = rendering.example(Row(probe.prompt, probe.expect, ""))
        logits, _ = answers.logits(collate([example]).to(model.device))
    answers.close()
    first, second = logits.softmax(-1).topk(2).values.unbind(-1)
    return float((first - second).min())


def _nats_per_token(model: Any, examples: Sequence[Example], batch: int = 32) -> list[float]:
    answers = AnswerModel(model)
    sureness = [torch.zeros(0)]
    for start in range(0, len(examples), batch):
        nats, tokens, _ = answers.judge(collate(examples[start : start + batch]).to(model.device))
        sureness.append((nats / tokens).cpu())
    answers.close()
    return torch.cat(sureness).tolist()
