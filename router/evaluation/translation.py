"""Translations: corpus chrF and BLEU, by sacrebleu."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from router.evaluation.metrics import Metric, Scores, Selection, Task, pieces


class CorpusScorer:
    """ChrF (Popović 2015, https://aclanthology.org/W15-3049) or BLEU (Papineni et al. 2002); 0 to 100."""

    def __init__(self, metric: Any, answers: Sequence[str], golds: Sequence[str]) -> None:
        """`metric` is sacrebleu's."""
        self._metric = metric
        # Counts of each row, as sacrebleu's own bootstrap keeps them: far faster than corpus_score.
        self._counts = np.array(metric._extract_corpus_statistics(list(answers), [list(golds)]))

    def score(self, rows: Selection) -> float:
        """Score of the rows taken as one text."""
        counts = self._counts[rows].sum(axis=0).tolist()
        return float(self._metric._compute_score_from_stats(counts).score)


def best_part(answer: str, gold: str) -> str:
    """Format-blind: the piece of the answer that is nearest to the gold by chrF."""
    chrf = CHRF()
    closeness = {part: float(chrf.sentence_score(part, [gold]).score) for part in pieces(answer)}
    return max(closeness, key=closeness.__getitem__)


def _scores(task: Task, answers: Sequence[str]) -> Scores:
    golds = [row.response for row in task.rows]
    best = [best_part(*pair) for pair in zip(answers, golds, strict=True)]
    bleu = BLEU(force=True)  # force: no warning about tokenized text
    return Scores(
        CorpusScorer(CHRF(), answers, golds),
        CorpusScorer(CHRF(), best, golds),
        {"BLEU": CorpusScorer(bleu, answers, golds)},
    )


def _references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"copying the input": [row.bare for row in task.rows]} if task.rows[0].bare else {}


CHRF_METRIC = Metric(
    "chrF",
    1,
    "chrF and BLEU run from 0 to 100. Format-blind: only the line, sentence or quoted part of each answer "
    "that is nearest to the gold counts.",
    _scores,
    _references,
    whole=100,
)
