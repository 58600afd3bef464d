"""Summaries: ROUGE (Lin 2004, https://aclanthology.org/W04-1013), by rouge-score, without stemming."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rouge_score.rouge_scorer import RougeScorer

from router.evaluation.metrics import MeanScorer, Metric, Scores, Task, pieces

FIRST_WORDS = 12
SCORER = RougeScorer(["rouge1", "rougeL"])


def rouge(answer: str, gold: str) -> tuple[float, float]:
    """F1 of ROUGE-L and of ROUGE-1; 0 to 1."""
    scores = SCORER.score(gold, answer)
    return scores["rougeL"].fmeasure, scores["rouge1"].fmeasure


def _scores(task: Task, answers: Sequence[str]) -> Scores:
    pairs = [(answer, row.response) for answer, row in zip(answers, task.rows, strict=True)]
    both = [rouge(*pair) for pair in pairs]
    best = [max(rouge(piece, gold)[0] for piece in pieces(answer)) for answer, gold in pairs]
    return Scores(
        MeanScorer([longest for longest, _ in both]),
        MeanScorer(best),
        {
            "ROUGE-1": MeanScorer([words for _, words in both]),
            "words": MeanScorer([len(answer.split()) for answer in answers]),
        },
    )


def lead(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


def _references(task: Task) -> Mapping[str, Sequence[str]]:
    texts = [row.bare for row in task.rows]
    if not all(texts):
        return {}
    return {
        "the first sentence": [lead(text) for text in texts],
        f"the first {FIRST_WORDS} words": [" ".join(text.split()[:FIRST_WORDS]) for text in texts],
    }


ROUGE_L = Metric(
    "ROUGE-L",
    3,
    "ROUGE-L and ROUGE-1 are F1 scores from 0 to 1. Format-blind: only the line, sentence or quoted part of "
    "each answer that scores best counts. Words: the mean length of an answer.",
    _scores,
    _references,
)
