"""The parts of a request that are read on their own."""

from __future__ import annotations

import pytest

from router.classifiers.regression import HEAD, SENTENCE_WORDS, TAIL, whole_first_last


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("Title for this?\n\nBees dance. They sing.", "Title for this?", "They sing."),
        ("Bees dance. They sing.\nSay it in one line.", "Bees dance.", "Say it in one line."),
        ("In French: the bees dance", "In French:", "the bees dance"),
        ("Bees dance\n-> title?", "Bees dance", "Bees dance title?"),
        ("Which bee dances?\nA. the queen\nB. a drone", "Which bee dances?", "Which bee dances?"),
        ("A. the queen\nB. a drone", "A. the queen", "a drone"),
        ("who dances", "who dances", "who dances"),
        ("?!", "?!", "?!"),
        ("", "", ""),
    ],
)
def test_first_and_last_sentence(text: str, first: str, last: str) -> None:
    assert whole_first_last(text) == (text, first, last)


def test_long_texts_and_long_sentences_are_cut() -> None:
    whole, first, last = whole_first_last("word " * 1000)
    assert len(whole) < HEAD + TAIL + 10
    assert len(first.split()) == len(last.split()) == SENTENCE_WORDS
