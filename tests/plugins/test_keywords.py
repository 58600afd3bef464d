"""The keywords classifier."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from router.plugins.doctor import requests_of
from router.routing import Classifier, Scores
from router.testing import ClassifierContract
from router.types import AdapterProfile

MEDICAL = AdapterProfile(
    "medical",
    "1",
    keywords=("symptom", "blood pressure", "blood", "ICD-10", "shared"),
    negative_examples=("Who plays the blood donor in this film?",),
)
TRANSLATION = AdapterProfile(
    "translation", "1", task="translation", keywords=("translate", "in French", "shared", "C++")
)


@pytest.fixture(scope="module")
def make(first_party: Callable[[str], ModuleType]) -> Callable[[], Classifier]:
    return first_party("keywords").Keywords  # type: ignore[no-any-return]


@pytest.fixture
def ask(make: Callable[[], Classifier]) -> Callable[[str], Scores | None]:
    classifier = make()
    classifier.fit([MEDICAL, TRANSLATION])
    return lambda text: classifier.classify_batch(requests_of([text]))[0]


class TestContract(ClassifierContract):
    @pytest.fixture(autouse=True)
    def _classifier(self, make: Callable[[], Classifier]) -> None:
        self.make = make  # type: ignore[method-assign]


@pytest.mark.parametrize("text", ["hello", "", "symptomatic bloodhound", "frenching in", "C"])
def test_only_whole_words_count(ask: Any, text: str) -> None:
    assert ask(text) is None


def test_it_says_what_it_found(ask: Any) -> None:
    scores = ask("Which SYMPTOM comes with high blood\npressure? Say it in french!")
    assert scores.evidence == "medical: symptom, blood pressure; translation: in french"
    assert scores.values["translation"] > 0.5 > scores.values["medical"]


def test_one_word_alone_is_not_enough_and_repeating_it_does_not_help(ask: Any) -> None:
    assert ask("symptom").values == ask("symptom symptom, symptom").values
    assert ask("symptom").values["medical"] < 0.5


def test_a_phrase_hides_the_words_in_it(ask: Any) -> None:
    assert ask("blood pressure").evidence == "medical: blood pressure"


def test_a_phrase_of_two_adapters_counts_less_for_each(ask: Any) -> None:
    assert ask("shared").values["medical"] == pytest.approx(ask("symptom").values["medical"] / 2)


def test_symbols_of_languages_are_part_of_the_word(ask: Any) -> None:
    assert ask("port it to C++").evidence == "translation: c++"


def test_negated_keywords_do_not_count(ask: Any) -> None:
    assert ask("Please do not translate anything") is None
    assert ask("don’t translate") is None


def test_a_request_like_a_negative_example_gets_no_vote(ask: Any) -> None:
    assert ask("who plays the blood donor in this film") is None
    assert ask("who gave blood in this film") is not None


def test_words_of_a_text_to_rework_count_half_for_others(ask: Any) -> None:
    plain = ask("A symptom of low blood pressure").values["medical"]
    rework = ask("Summarize this: A symptom of low blood pressure").values["medical"]
    assert rework == pytest.approx(plain / 2)
    assert ask("Translate it in French").values["translation"] > 0.8


@pytest.mark.parametrize("text", ["In French: {} Be quick.", "Be quick. {} Say it in French."])
def test_a_task_in_the_first_or_last_sentence_beats_words_between(ask: Any, text: str) -> None:
    body = "A symptom of low blood pressure."
    plain, framed = ask(f"Be quick. {body} Be quick."), ask(text.format(body))
    assert framed.values["medical"] == pytest.approx(plain.values["medical"] / 2)
    assert framed.values["translation"] == pytest.approx(0.7)
    within = ask(f"Be quick. Not so fast. It is in French. {body} Be quick.")
    assert within.values["medical"] == plain.values["medical"]


def test_the_end_of_a_long_text_is_read_and_the_middle_is_not(ask: Any) -> None:
    filler = "word " * 500
    assert ask(f"{filler} in french") is not None
    assert ask(f"{filler} in french {filler}") is None
