from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from router.evaluation.metrics import MeanScorer
from router.evaluation.scoring import CorpusScorer, best_part, exact_match, names_only, same_part

LABELS = ["Diseases of the ear", "Diseases of the ear and mastoid process", "Neoplasms"]


def test_exact_match_ignores_outer_white_space_only() -> None:
    assert exact_match(" Neoplasms\n", "Neoplasms")
    assert not exact_match("neoplasms", "Neoplasms")
    assert not exact_match("Neoplasms.", "Neoplasms")


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("It is in the chapter NEOPLASMS.", "Neoplasms", True),
        ("diseases of the ear, and mastoid process", LABELS[1], True),
        ("diseases of the ear and mastoid process", LABELS[0], False),
        ("Neoplasms or Diseases of the ear", "Neoplasms", False),
        ("Neoplasmsuria", "Neoplasms", False),
        ("", "Neoplasms", False),
    ],
)
def test_names_only(answer: str, gold: str, right: bool) -> None:
    assert names_only(answer, gold, LABELS) is right


def test_chrf_is_sacrebleus_on_any_selection() -> None:
    answers, golds = ["le chat", "un chien noir", "rien"], ["le chat", "le chien noir", "tout autre chose"]
    scorer = CorpusScorer(CHRF(), answers, golds)
    for rows in ([0, 1, 2], [2, 2, 0], [1]):
        expected = CHRF().corpus_score([answers[row] for row in rows], [[golds[row] for row in rows]]).score
        assert scorer.score(np.array(rows)) == pytest.approx(expected)
    assert scorer.score(np.array([0])) == pytest.approx(100)


def test_mean() -> None:
    assert MeanScorer([1, 0, 0, 1]).score(np.array([0, 0, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("Sure, here it is:\nle chat noir\nAnything else?", "le chat noir"),
        ('The translation is "le chat noir".', "le chat noir"),
        ("le chat noir", "le chat noir"),
    ],
)
def test_best_part_drops_the_chatter(answer: str, part: str) -> None:
    assert best_part(answer, "le chat noir") == part


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("GPL-2.0-only (Copyleft)", [True, True]),
        ("MIT (Copyleft)", [False, True]),
        ("Copyleft", [False, False]),
    ],
)
def test_parts_of_a_label_count_for_themselves(answer: str, right: list[bool]) -> None:
    patterns = [r"^(.+) \(", r"\((.+)\)$"]
    assert [same_part(answer, "GPL-2.0-only (Copyleft)", pattern) for pattern in patterns] == right


def test_bleu_is_sacrebleus() -> None:
    answers = ["le petit chat noir dort bien", "un grand chien mange"]
    golds = ["le petit chat noir dort", "un grand chien mange ici"]
    expected = BLEU(force=True).corpus_score(answers, [golds]).score
    assert CorpusScorer(BLEU(force=True), answers, golds).score(np.array([0, 1])) == pytest.approx(expected)
