"""The metrics by the names recipes call them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from router.evaluation.metrics import MeanScorer, Metric, Scores, Selection, Task, best_piece, pieces
from router.evaluation.sql import EXECUTION
from router.training.data import Row

# Answers that are names out of a closed list.


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


# Summaries: ROUGE (Lin 2004, https://aclanthology.org/W04-1013), by rouge-score, without stemming.


FIRST_WORDS = 12
SCORER = RougeScorer(["rouge1", "rougeL"])


def rouge(answer: str, gold: str) -> tuple[float, float]:
    """F1 of ROUGE-L and of ROUGE-1; 0 to 1."""
    scores = SCORER.score(gold, answer)
    return scores["rougeL"].fmeasure, scores["rouge1"].fmeasure


def _rouge_scores(task: Task, answers: Sequence[str]) -> Scores:
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


def _rouge_references(task: Task) -> Mapping[str, Sequence[str]]:
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
    _rouge_scores,
    _rouge_references,
)


# Short answers from a passage, judged as SQuAD judges them.
#
# Rajpurkar et al. 2016, https://aclanthology.org/D16-1264


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


def _squad_scores(task: Task, answers: Sequence[str]) -> Scores:
    pairs = [(answer, row.response) for answer, row in zip(answers, task.rows, strict=True)]
    return Scores(
        MeanScorer([token_f1(*pair) for pair in pairs]),
        MeanScorer([blind_f1(*pair) for pair in pairs]),
        {
            "exact": MeanScorer([normalised(answer) == normalised(gold) for answer, gold in pairs]),
            "gold contained": MeanScorer([contains(*pair) for pair in pairs]),
        },
    )


def _squad_references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"the whole question as the answer": [row.prompt for row in task.rows]}


TOKEN_F1 = Metric(
    "token F1",
    3,
    "Token F1 and exact as SQuAD has them: without case, punctuation and articles. Format-blind: 1 if the "
    "gold stands anywhere in the answer, otherwise the F1 of its nearest line, sentence or quoted part; it "
    "favours long answers, which repeat much of the passage.",
    _squad_scores,
    _squad_references,
)


# Translations: corpus chrF and BLEU, by sacrebleu.


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


def _translation_scores(task: Task, answers: Sequence[str]) -> Scores:
    golds = [row.response for row in task.rows]
    best = [best_part(*pair) for pair in zip(answers, golds, strict=True)]
    bleu = BLEU(force=True)  # force: no warning about tokenized text
    return Scores(
        CorpusScorer(CHRF(), answers, golds),
        CorpusScorer(CHRF(), best, golds),
        {"BLEU": CorpusScorer(bleu, answers, golds)},
    )


def _translation_references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"copying the input": [row.bare for row in task.rows]} if task.rows[0].bare else {}


CHRF_METRIC = Metric(
    "chrF",
    1,
    "chrF and BLEU run from 0 to 100. Format-blind: only the line, sentence or quoted part of each answer "
    "that is nearest to the gold counts.",
    _translation_scores,
    _translation_references,
    whole=100,
)


METRICS: Mapping[str, Metric] = {
    "exact_match": EXACT_MATCH,
    "chrf": CHRF_METRIC,
    "token_f1": TOKEN_F1,
    "rouge_l": ROUGE_L,
    "execution": EXECUTION,
}


def check_rows(metric: str, rows: Sequence[Row]) -> None:
    """Raises ConfigError, naming the row, for rows that a metric cannot judge."""
    METRICS[metric].check(rows)


def scores(task: Task, answers: Sequence[str]) -> Scores:
    """Judge one answer for each row of the task. Raises ConfigError for rows that the metric cannot judge."""
    return METRICS[task.metric].scores(task, answers)
