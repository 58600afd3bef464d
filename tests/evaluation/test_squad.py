from __future__ import annotations

import pytest

from router.evaluation.scoring import blind_f1, contains, normalised, token_f1


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
    assert blind_f1(long, "Emperor Gaozong I") == pytest.approx(2 / 3)
    assert blind_f1(long, "the Song Emperor") == 1
