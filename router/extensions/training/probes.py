"""Probes of a new adapter: validation prompts with the answers that it gives in the engine that serves.

They are made as a server runs them: the adapter is held to its own constraint, the base is not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.subject import Answerer, EngineAnswer
from router.registry.format.manifest import PROBE_CHARS, Match, Probe
from router.types import LabelSettings, SamplingParams

LONGEST_PROBE = 24  # tokens of an answer
ASKED = 64  # rows, drawn by a fixed seed
SHORTLIST = 4  # candidates tried for each probe wanted
# By which each token, or the choice, is ahead in probability: near ties fall differently on other kernels.
LEAD = 0.1


def choose_probes(
    adapter: Answerer, rendering: Rendering, rows: Sequence[TrainingRow], count: int
) -> list[Probe]:
    """`count` validation rows that the adapter is surest of, with distinct answers that the base does not
    give: sure ones, so that a probe does not turn on the last bit of a sum on another machine."""
    short = [
        row
        for row in rows
        if len(row.prompt) <= PROBE_CHARS and len(rendering.answer(row.response)) <= LONGEST_PROBE
    ]
    asked = random.Random(0).sample(short, min(ASKED, len(short)))
    params = replace(adapter.params, max_tokens=LONGEST_PROBE + 1, logprobs=1)
    choices = params.constraint is not None and params.constraint.kind == "choices"
    ours = replace(adapter, params=params, labels=LabelSettings() if choices else None)
    given = zip(asked, _answers(ours, rendering, asked), strict=True)
    sure = [(row, answer) for row, answer in given if answer.whole and lead_of(answer) >= LEAD]
    best: dict[str, TrainingRow] = {}  # by the answer
    for row, answer in sorted(sure, key=lambda pair: -lead_of(pair[1])):
        best.setdefault(answer.text, row)
    listed = list(best.items())[: SHORTLIST * count]
    base = Answerer(adapter.engine, SamplingParams(LONGEST_PROBE + 1))
    plain = _answers(base, rendering, [row for _, row in listed])
    differing = [pair for pair, answer in zip(listed, plain, strict=True) if pair[0] != answer.text]
    return [Probe(row.prompt, text, Match.EXACT, LONGEST_PROBE + 1) for text, row in differing[:count]]


def _answers(side: Answerer, rendering: Rendering, rows: Sequence[TrainingRow]) -> Sequence[EngineAnswer]:
    texts = [row.prompt for row in rows]
    return side.answers([rendering.prompt(text) for text in texts], texts)


def lead_of(answer: EngineAnswer) -> float:
    """How far the answer is ahead of any other in probability: as a choice, or by its least sure token."""
    if answer.labels is None:
        return 2 * answer.sureness - 1  # a second token has what is left at most
    (first, most), (_, second) = sorted(answer.labels.values, key=lambda pair: -pair[1])[:2]
    return most - second if first == answer.text else 0.0
