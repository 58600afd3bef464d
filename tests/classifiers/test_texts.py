"""First and last sentences; languages of requests: the instruction counts, not the passage behind it."""

from __future__ import annotations

import pytest

from router.classifiers.texts import (
    HEAD,
    SENTENCE_WORDS,
    TAIL,
    is_foreign,
    language_of,
    languages_of,
    whole_first_last,
)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I reset my password?", "en"),
        ("Translate into German: Ich weiß nicht, wo der Schlüssel ist.", "en"),
        ('What does "me duele el pecho desde anoche" mean?', "en"),
        ("Summarize this in one sentence.\n\nDer Verein hat am Samstag den Bach gereinigt.", "en"),
        ("ketamine sedation child im", ""),
        ("¿A qué hora sale el último autobús? (in English please)", "en"),
        ("Wie viel Urlaub steht mir im zweiten Jahr zu?", "de"),
        ("In welchem Jahr wurde die Berliner Mauer gebaut?", "de"),
        ("Übersetze ins Spanische: Please take off your shoes and lie down.", "de"),
        ("Quelle est la capitale de l'Australie ?", "fr"),
        ("¿Por qué me da este error? TypeError: cannot unpack object", "es"),
        ("用SQL查询每个部门工资最高的员工", "zh"),
        ("雨の日曜日にぴったりの音楽かけて", "ja"),
        ("Привет, расскажи сказку", "ru"),
        ("12 + 30 = ?", ""),
        ("", ""),
    ],
)
def test_the_instruction_says_the_language(text: str, language: str) -> None:
    assert language_of(text) == language


def test_a_text_is_foreign_where_no_good_share_of_the_examples_is_in_its_language() -> None:
    english = ["How do I reset my password?", "my screen is black", "Please install the printer."] * 5
    known = languages_of([*english, "Wie setze ich mein Passwort zurück?"])
    assert known == {"en"}
    assert is_foreign("Mein Bildschirm ist schwarz, was mache ich?", known)
    assert not is_foreign("My screen is black, what do I do?", known)
    assert not is_foreign("E14", known)
    assert is_foreign("My screen is black, what do I do?", {"de"})
    assert not is_foreign("Mein Bildschirm ist schwarz, was mache ich?", frozenset())


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
