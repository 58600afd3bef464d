"""Scores of answers against gold answers.

Every metric is a `Scorer`: made once from all answers, asked for the score of any selection of rows,
so that the bootstrap can resample it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import CHRF

Selection = NDArray[np.intp]


class Scorer(Protocol):
    """Answers of one arm, ready to be scored."""

    def score(self, rows: Selection) -> float:
        """The score of these rows (a row may occur more than once)."""
        ...


class MeanScorer:
    """The mean of a number for each row."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = np.asarray(values, dtype=float)

    def score(self, rows: Selection) -> float:
        """Mean over the rows."""
        return float(self._values[rows].mean())


class ChrfScorer:
    """Corpus chrF (Popović 2015, https://aclanthology.org/W15-3049), by sacrebleu; 0 to 100."""

    def __init__(self, answers: Sequence[str], golds: Sequence[str]) -> None:
        self._chrf = CHRF()
        # Counts of each row, as sacrebleu's own bootstrap keeps them: 300 times faster than corpus_score.
        self._counts = self._chrf._extract_corpus_statistics(list(answers), [list(golds)])

    def score(self, rows: Selection) -> float:
        """ChrF of the rows taken as one text."""
        return float(self._chrf._aggregate_and_compute([self._counts[row] for row in rows]).score)


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


def best_part(answer: str, gold: str) -> str:
    """Format-blind: the line or quoted part of the answer that is nearest to the gold by chrF."""
    parts: list[str] = [answer, *answer.splitlines(), *re.findall(r'["“«](.+?)["”»]', answer)]
    chrf = CHRF()
    closeness = {part: float(chrf.sentence_score(part, [gold]).score) for part in parts}
    return max(closeness, key=closeness.__getitem__)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
