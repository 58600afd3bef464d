"""Short answers from a passage, judged as SQuAD judges them.

Rajpurkar et al. 2016, https://aclanthology.org/D16-1264
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from router.evaluation.metrics import MeanScorer, Metric, Scores, Task, best_piece

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> list[str]:
    """Words without case, ASCII punctuation and articles: SQuAD's normalisation."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def token_f1(answer: str, gold: str) -> float:
    """F1 over the words of both, with their counts; 0 to 1."""
    ours, theirs = normalised(answer), normalised(gold)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def contains(answer: str, gold: str) -> bool:
    """Whether the words of the gold stand in the answer, one after another."""
    ours, theirs = normalised(answer), normalised(gold)
    places = range(len(ours) - len(theirs) + 1)
    return bool(theirs) and any(ours[place : place + len(theirs)] == theirs for place in places)


def blind_f1(answer: str, gold: str) -> float:
    """1 if the gold stands in the answer, otherwise F1 of the piece of the answer that is nearest to it."""
    return 1.0 if contains(answer, gold) else best_piece(answer, lambda piece: token_f1(piece, gold))


def _scores(task: Task, answers: Sequence[str]) -> Scores:
    pairs = [(answer, row.response) for answer, row in zip(answers, task.rows, strict=True)]
    return Scores(
        MeanScorer([token_f1(*pair) for pair in pairs]),
        MeanScorer([blind_f1(*pair) for pair in pairs]),
        {
            "exact": MeanScorer([normalised(answer) == normalised(gold) for answer, gold in pairs]),
            "gold contained": MeanScorer([contains(*pair) for pair in pairs]),
        },
    )


def _references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"the whole question as the answer": [row.prompt for row in task.rows]}


TOKEN_F1 = Metric(
    "token F1",
    3,
    "Token F1 and exact as SQuAD has them: without case, punctuation and articles. Format-blind: 1 if the "
    "gold stands anywhere in the answer, otherwise the F1 of its nearest line, sentence or quoted part; it "
    "favours long answers, which repeat much of the passage.",
    _scores,
    _references,
)
