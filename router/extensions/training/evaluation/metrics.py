"""All metrics, by the names that recipes call them; `METRICS`, at the end, is the list.

exact_match, rouge_l, token_f1 and chrf judge texts; execution, which runs queries, is in recipes/execution.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from router.extensions.training.evaluation.scoring import (
    RECIPE_METRICS,
    MeanScorer,
    MetricScores,
    RecipeMetric,
    Selection,
    Task,
    recipe_metric,
)

FIRST_WORDS = 12  # of the text, as a summary that costs nothing
ROUGE = RougeScorer(["rouge1", "rougeL"])
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
Pairs = Sequence[tuple[str, str]]  # answer and gold


def _pairs(task: Task, answers: Sequence[str]) -> Pairs:
    return [(answer, row.response) for answer, row in zip(answers, task.rows, strict=True)]


def _mean(judge: Callable[[str, str], float], pairs: Pairs) -> MeanScorer:
    return MeanScorer([judge(answer, gold) for answer, gold in pairs])


def pieces(answer: str) -> list[str]:
    """The answer, its lines, its sentences and what it puts in quotes: where the answer proper may stand."""
    quoted: list[str] = re.findall(r'["“«](.+?)["”»]', answer)
    sentences = re.split(r"(?<=[.!?:])\s+", answer)
    return list(dict.fromkeys([answer, *answer.splitlines(), *sentences, *quoted]))


def best_piece(answer: str, closeness: Callable[[str], float]) -> float:
    """The most that any piece of an answer scores."""
    return max(map(closeness, pieces(answer)))


# -- exact_match: answers that are names out of a closed list


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


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def same_part(answer: str, gold: str, pattern: str) -> bool:
    """Whether the first group of `pattern` takes the same text out of both."""
    ours, theirs = (re.search(pattern, text.strip()) for text in (answer, gold))
    return bool(ours and theirs and ours[1] == theirs[1])


def _exact_match_scores(task: Task, answers: Sequence[str]) -> MetricScores:
    pairs = _pairs(task, answers)
    return MetricScores(
        _mean(exact_match, pairs),
        _mean(partial(names_only, labels=task.labels), pairs),
        {name: _mean(partial(same_part, pattern=pattern), pairs) for name, pattern in task.parts.items()},
    )


def _exact_match_references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"always the commonest label": [task.labels[0]] * len(task.rows)} if task.labels else {}


EXACT_MATCH = RecipeMetric(
    "exact match",
    3,
    "Format-blind: the gold label, and no other, is named anywhere in the answer.",
    _exact_match_scores,
    _exact_match_references,
)


# -- rouge_l: summaries (Lin 2004, https://aclanthology.org/W04-1013), by rouge-score, without stemming


def rouge(answer: str, gold: str) -> tuple[float, float]:
    """F1 of ROUGE-L and of ROUGE-1; 0 to 1."""
    scores = ROUGE.score(gold, answer)
    return scores["rougeL"].fmeasure, scores["rouge1"].fmeasure


def best_rouge_l(answer: str, gold: str) -> float:
    """Format-blind: ROUGE-L of the piece of the answer that scores best."""
    return best_piece(answer, lambda piece: rouge(piece, gold)[0])


def _rouge_scores(task: Task, answers: Sequence[str]) -> MetricScores:
    pairs = _pairs(task, answers)
    both = [rouge(*pair) for pair in pairs]
    return MetricScores(
        MeanScorer([longest for longest, _ in both]),
        _mean(best_rouge_l, pairs),
        {
            "ROUGE-1": MeanScorer([words for _, words in both]),
            "words": MeanScorer([len(answer.split()) for answer in answers]),
        },
    )


def first_sentence(text: str) -> str:
    """Up to the first mark that ends one."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


def _rouge_references(task: Task) -> Mapping[str, Sequence[str]]:
    texts = [row.bare for row in task.rows]
    if not all(texts):
        return {}
    return {
        "the first sentence": [first_sentence(text) for text in texts],
        f"the first {FIRST_WORDS} words": [" ".join(text.split()[:FIRST_WORDS]) for text in texts],
    }


ROUGE_L = RecipeMetric(
    "ROUGE-L",
    3,
    "ROUGE-L and ROUGE-1 are F1 scores from 0 to 1. Format-blind: only the line, sentence or quoted part of "
    "each answer that scores best counts. Words: the mean length of an answer.",
    _rouge_scores,
    _rouge_references,
)


# -- token_f1: short answers from a passage, as SQuAD has it (Rajpurkar et al. 2016,
# https://aclanthology.org/D16-1264)


def normalised(text: str) -> list[str]:
    """Words without case, ASCII punctuation and articles: SQuAD's normalisation."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(WITHOUT_PUNCTUATION)).split()


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


def best_token_f1(answer: str, gold: str) -> float:
    """Format-blind: 1 if the gold stands in the answer, otherwise F1 of the answer's nearest piece."""
    return 1.0 if contains(answer, gold) else best_piece(answer, lambda piece: token_f1(piece, gold))


def _token_f1_scores(task: Task, answers: Sequence[str]) -> MetricScores:
    pairs = _pairs(task, answers)
    return MetricScores(
        _mean(token_f1, pairs),
        _mean(best_token_f1, pairs),
        {
            "exact": _mean(lambda answer, gold: normalised(answer) == normalised(gold), pairs),
            "gold contained": _mean(contains, pairs),
        },
    )


def _token_f1_references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"the whole question as the answer": [row.prompt for row in task.rows]}


TOKEN_F1 = RecipeMetric(
    "token F1",
    3,
    "Token F1 and exact as SQuAD has them: without case, punctuation and articles. Format-blind: 1 if the "
    "gold stands anywhere in the answer, otherwise the F1 of its nearest line, sentence or quoted part; it "
    "favours long answers, which repeat much of the passage.",
    _token_f1_scores,
    _token_f1_references,
)


# -- chrf: translations, over the corpus, with BLEU beside it, by sacrebleu


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


def nearest_piece(answer: str, gold: str) -> str:
    """Format-blind: the piece of the answer that is nearest to the gold by chrF."""
    chrf = CHRF()
    closeness = {piece: float(chrf.sentence_score(piece, [gold]).score) for piece in pieces(answer)}
    return max(closeness, key=closeness.__getitem__)


def _chrf_scores(task: Task, answers: Sequence[str]) -> MetricScores:
    golds = [row.response for row in task.rows]
    best = [nearest_piece(*pair) for pair in zip(answers, golds, strict=True)]
    bleu = BLEU(force=True)  # force: no warning about tokenized text
    return MetricScores(
        CorpusScorer(CHRF(), answers, golds),
        CorpusScorer(CHRF(), best, golds),
        {"BLEU": CorpusScorer(bleu, answers, golds)},
    )


def _chrf_references(task: Task) -> Mapping[str, Sequence[str]]:
    return {"copying the input": [row.bare for row in task.rows]} if task.rows[0].bare else {}


CHRF_SCORE = RecipeMetric(
    "chrF",
    1,
    "chrF and BLEU run from 0 to 100. Format-blind: only the line, sentence or quoted part of each answer "
    "that is nearest to the gold counts.",
    _chrf_scores,
    _chrf_references,
    whole=100,
)


class MetricsByName(dict[str, RecipeMetric]):
    """Metrics by name. One of `RECIPE_METRICS` is loaded when it is first asked for."""

    def __missing__(self, name: str) -> RecipeMetric:
        if name not in RECIPE_METRICS:
            raise KeyError(name)
        self[name] = recipe_metric(name)
        return self[name]


METRICS: Mapping[str, RecipeMetric] = MetricsByName(
    exact_match=EXACT_MATCH, chrf=CHRF_SCORE, token_f1=TOKEN_F1, rouge_l=ROUGE_L
)
