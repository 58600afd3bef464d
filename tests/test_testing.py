"""The contracts that authors of plugins subclass, on a good classifier and on bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from router.routing import Classifier, Scores
from router.testing import ClassifierContract, classifier_of
from router.types import AdapterProfile, Request


class Longest(Classifier):
    name = "longest"

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        self._names = tuple(a.name for a in adapters)

    def classify_batch(self, requests: Any) -> Any:
        names = self._names
        return [Scores({names[0]: 0.5}) if names and len(r.text) > 9 else None for r in requests]


class TestLongest(ClassifierContract):
    def make(self) -> Classifier:
        return Longest()


class Moody(Longest):
    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def classify_batch(self, requests: Any) -> Any:
        self._calls += 1
        return [Scores({"a": 1.0 if self._calls % 2 else 0.0}) for _ in requests]


def test_a_broken_promise_of_a_classifier_fails_with_what_is_wrong() -> None:
    class Contract(ClassifierContract):
        def make(self) -> Classifier:
            return Moody()

    with pytest.raises(AssertionError, match="then"):
        Contract().test_the_same_request_gets_the_same_answer()


def test_a_classifier_comes_from_the_file_of_its_plugin(tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "examples" / "plugins" / "urgent_words.py"
    classifier = classifier_of(example, words=["fire"])
    urgent, other = classifier.classify_batch([Request(t, raw_prompt=t) for t in ("Fire!", "Urgent!")])
    assert (urgent is not None, other) == (True, None)
    assert classifier_of(example) is not classifier_of(example)
    with pytest.raises(ValueError, match=r"urgent_words.py: ValueError: unknown setting urgent_words.wrods"):
        classifier_of(example, wrods=["fire"])
    with pytest.raises(ValueError, match=r"mask_email.py registers 0 classifiers and should"):
        classifier_of(example.with_name("mask_email.py"))
    with pytest.raises(ValueError, match=r"absent.py: FileNotFoundError"):
        classifier_of(tmp_path / "absent.py")


def test_forgetting_make_of_a_classifier_is_explained() -> None:
    with pytest.raises(NotImplementedError, match="make"):
        ClassifierContract().test_it_can_be_registered()
