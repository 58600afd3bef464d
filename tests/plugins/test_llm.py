"""The likelihood classifier: its arithmetic on a toy base, and the contract."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from router.plugins.doctor import requests_of
from router.testing import ClassifierContract
from router.types import AdapterProfile

A = AdapterProfile("a", "1", description="letter a", examples=("aaaa", "aaab", "aaac", "aada"))
B = AdapterProfile("b", "1", domain="bees", examples=("bbbb", "bbba", "bbbc", "bdbb"))


class Judge:
    """A base that finds likely what names the letter the prompt has most of, and long texts unlikely."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...], bool]] = []

    def likelihood(self, prompt: str, continuations: Any, *, background: bool = False) -> Any:
        text = prompt.split("\n")[0]
        self.asked.append((text, tuple(continuations), background))
        letters = {"letter a": "a", "bees questions and tasks.": "b"}
        return [np.array([text.count(letters.get(c, "z")), -len(c)], np.float32) for c in continuations]

    def hidden(self, texts: Any, **_: Any) -> Any:
        raise AssertionError("this one asks for likelihoods only")


@pytest.fixture(scope="module")
def module(first_party: Callable[[str], ModuleType]) -> Any:
    return first_party("llm")


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def toy(module: Any, judge: Judge) -> Any:
    classifier = module.Llm()
    classifier.bind(judge)
    classifier.fit([A, B])
    return classifier


def values(classifier: Any, text: str) -> dict[str, float]:
    return dict(classifier.classify_batch(requests_of([text]))[0].values)


def test_what_the_request_makes_likelier_wins(toy: Any) -> None:
    assert values(toy, "bbbbb")["b"] > 0.5
    assert values(toy, "aaaaa")["a"] > 0.5
    assert max(values(toy, "zzz").values()) < 0.5
    (scores,) = toy.classify_batch(requests_of(["aaaaa"]))
    assert scores.evidence == "fits best: letter a"


def test_a_new_fit_scores_only_what_is_new(toy: Any, judge: Judge) -> None:
    judge.asked.clear()
    toy.fit([A, B])
    assert judge.asked == []
    toy.fit([A, B, AdapterProfile("c", "1", description="letter c", examples=("cccc",))])
    assert ("aaaa", ("letter c",), True) in judge.asked
    assert (
        "cccc",
        ("letter a", "bees questions and tasks.", "letter c", toy._model.descriptions[-1]),
        True,
    ) in (judge.asked)


def test_a_request_is_no_background_work(toy: Any, judge: Judge) -> None:
    values(toy, "aaaaa")
    assert judge.asked[-1][2] is False


def test_empty_text_and_no_examples_are_declined(module: Any, toy: Any) -> None:
    assert toy.classify_batch(requests_of(["", "bbb", " "]))[::2] == [None, None]
    toy.fit([AdapterProfile("bare", "1")])
    assert toy.classify_batch(requests_of(["bbb"])) == [None]
    with pytest.raises(RuntimeError, match="not bound"):
        module.Llm().fit([A])


class TestContract(ClassifierContract):
    timeout_ms = 5000

    @pytest.fixture(autouse=True)
    def _classifier(self, module: Any) -> None:
        self.make = module.Llm
