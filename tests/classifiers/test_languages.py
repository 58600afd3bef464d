"""Languages of requests: what is asked counts, not the passage that comes with it."""

from __future__ import annotations

import pytest

from router.classifiers.texts import is_foreign, language_of, languages_of


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
