"""Scores that need no decoding: loss on the gold answers, and the likeliest of given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.training.answers import AnswerModel
from router.training.batch import Example, collate


@dataclass(frozen=True, slots=True)
class Forced:
    """Nats per gold-answer token, and the share of rows whose gold answer greedy decoding gives."""

    loss: float
    exact: float


def forced(model: AnswerModel, examples: Sequence[Example], batch: int = 16) -> Forced:
    """Teacher-forced loss over `examples`."""
    nats = tokens = exact = 0.0
    ordered = sorted(examples, key=len)
    for start in range(0, len(ordered), batch):
        judged = model.judge(collate(ordered[start : start + batch]).to(model.model.device))
        more_nats, more_tokens, more_exact = (float(values.sum()) for values in judged)
        nats, tokens, exact = nats + more_nats, tokens + more_tokens, exact + more_exact
    return Forced(nats / tokens, exact / len(ordered))


def likeliest(model: AnswerModel, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    """Which of `answers` the model finds likeliest after `prompt`, by nats per token.

    Per token, so that long names are not at a loss (Holtzman et al. 2021 discuss the choices,
    https://aclanthology.org/2021.emnlp-main.564).
    """
    rows = [Example(tuple(prompt), tuple(answer)) for answer in answers]
    nats, tokens, _ = model.judge(collate(rows).to(model.model.device))
    return int((nats / tokens).argmin())
