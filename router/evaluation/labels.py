"""Answers that are names out of a closed list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from router.evaluation.metrics import MeanScorer, Metric, Scores, Task


def exact_match(answer: str, gold: str) -> bool:
    """Equal but for surrounding white space."""
    return answer.strip() == gold.strip()


def names_only(answer: str, gold: str, labels: Sequence[str]) -> bool:
    """Format-blind: the gold label stands somewhere in the answer, and no other label does.

    Case, punctuation and white space do not count; a label inside a longer named label is not
    counted as named.
    """
    rest = _plain(answer)
    named = set()
    for label in sorted(map(_plain, {*labels, gold}), key=len, reverse=True):
        pattern = rf"\b{re.escape(label)}\b"
        if re.search(pattern, rest):
            named.add(label)
            rest = re.sub(pattern, " ", rest)
    return named == {_plain(gold)}


def same_part(answer: str, gold: str, pattern: str) -> bool:
    """Whether the first group of `pattern` takes the same text out of both."""
    ours, theirs = (re.search(pattern, text.strip()) for text in (answer, gold))
    return bool(ours and theirs and ours[1] == theirs[1])


def _scores(task: Task, answers: Sequence[str]) -> Scores:
    pairs = [(answer, row.response) for answer, row in zip(answers, task.rows, strict=True)]
    return Scores(
        MeanScorer([exact_match(*pair) for pair in pairs]),
        MeanScorer([names_only(*pair, task.labels) for pair in pairs]),
        {
            name: MeanScorer([same_part(*pair, pattern) for pair in pairs])
            for name, pattern in task.parts.items()
        },
    )


def _references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"always the commonest label": [task.labels[0]] * len(task.rows)} if task.labels else {}


EXACT_MATCH = Metric(
    "exact match",
    3,
    "Format-blind: the gold label, and no other, is named anywhere in the answer. Likeliest label: of all "
    "labels the one with the least loss per token is the gold one, so that format plays no part.",
    _scores,
    _references,
)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
