"""Each metric on answers judged by hand, and against the library that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from router.extensions.training.data import TrainingRow
from router.extensions.training.evaluation.metrics import (
    METRICS,
    CorpusScorer,
    best_token_f1,
    contains,
    exact_match,
    first_sentence,
    names_only,
    nearest_piece,
    normalised,
    rouge,
    same_part,
    token_f1,
)
from router.extensions.training.evaluation.scoring import Task

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


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("Sure, here it is:\nle chat noir\nAnything else?", "le chat noir"),
        ('The translation is "le chat noir".', "le chat noir"),
        ("le chat noir", "le chat noir"),
    ],
)
def test_nearest_piece_drops_the_chatter(answer: str, part: str) -> None:
    assert nearest_piece(answer, "le chat noir") == part


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


def test_rouge_by_hand() -> None:
    longest, words = rouge("driver for the display", "display driver for X")
    assert longest == pytest.approx(2 * (2 / 4) * (2 / 4) / (2 / 4 + 2 / 4))  # "driver for"
    assert words == pytest.approx(3 / 4)
    assert rouge("", "display driver") == (0, 0)


def test_the_first_sentence() -> None:
    assert first_sentence(" Version 2.0 is here. It is faster.") == "Version 2.0 is here."
    assert first_sentence("no end") == "no end"


def test_references_need_the_bare_text() -> None:
    references = METRICS["rouge_l"].references
    text = " ".join(f"w{place}" for place in range(20)) + ". Second."
    named = references(Task("rouge_l", [TrainingRow("p", "r", "f:1", text)], (), 8))
    assert named["the first 12 words"] == [" ".join(f"w{place}" for place in range(12))]
    assert named["the first sentence"] == [text.removesuffix(" Second.")]
    assert references(Task("rouge_l", [TrainingRow("p", "r", "f:1")], (), 8)) == {}


def test_normalisation_is_squads() -> None:
    assert normalised("The  U.S. Army, a\nforce!") == ["us", "army", "force"]
    assert normalised("Théâtre") == ["théâtre"]


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("the Song Emperor", "Song emperor.", 1.0),
        ("Emperor Kublai", "the Song Emperor", 0.5),
        ("one one two", "one two two", 2 / 3),
        ("no idea", "1234", 0.0),
        ("", "1234", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_token_f1(answer: str, gold: str, f1: float) -> None:
    assert token_f1(answer, gold) == pytest.approx(f1)


def test_contained_means_whole_words_in_order() -> None:
    assert contains("It ended in the year 1234, they say.", "in 1234") is False
    assert contains("It ended in 1234, they say.", "in 1234")
    assert not contains("12345", "1234")
    assert not contains("anything", "the")


def test_blind_takes_the_nearest_piece_of_a_long_answer() -> None:
    long = 'He fled, as the passage says. "Song Emperor Gaozong" went along. Nothing else is known.'
    assert token_f1(long, "Emperor Gaozong I") < 0.4
    assert best_token_f1(long, "Emperor Gaozong I") == pytest.approx(2 / 3)
    assert best_token_f1(long, "the Song Emperor") == 1
