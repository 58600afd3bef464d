"""The linear classifier."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from router.classifiers import regression
from router.plugins.doctor import SAMPLE_ADAPTERS, requests_of
from router.routing import Classifier
from router.testing import ClassifierContract
from router.types import AdapterProfile

COOKING = AdapterProfile(
    "cooking",
    "1",
    examples=tuple(
        f"How long do I {verb} {food}?" for verb in ("boil", "fry", "bake") for food in ("eggs", "fish")
    ),
    negative_examples=("How long do I have to wait for the bus?", "How long is the film?"),
)
GARDEN = AdapterProfile(
    "garden",
    "1",
    examples=tuple(
        f"When should I {verb} my {it}?" for verb in ("plant", "prune") for it in ("roses", "hedge", "lawn")
    ),
)


@pytest.fixture(scope="module")
def module(first_party: Callable[[str], ModuleType]) -> Any:
    return first_party("linear")


@pytest.fixture(scope="module")
def ask(module: Any) -> Callable[[str], dict[str, float]]:
    classifier = module.Linear()
    classifier.fit([COOKING, GARDEN])
    return lambda text: dict(classifier.classify_batch(requests_of([text]))[0].values)


class TestContract(ClassifierContract):
    timeout_ms = 100

    @pytest.fixture(autouse=True)
    def _classifier(self, module: Any) -> None:
        self.make = module.Linear


def test_it_knows_requests_like_its_examples(ask: Any) -> None:
    assert ask("how long should I fry the fish")["cooking"] > 0.5
    assert ask("when do I prune the roses")["garden"] > 0.5


@pytest.mark.parametrize("text", ["Tell me a joke", "xkcd qwerty zzz", "What is 3 times 9?", "你好"])
def test_strange_requests_go_to_none_of_them(ask: Any, text: str) -> None:
    assert max(ask(text).values()) < 0.5


def test_a_negative_example_of_one_does_not_speak_against_the_others(module: Any) -> None:
    """It says "not cooking", which is not to say "none of them"."""
    bus = AdapterProfile(
        "bus", "1", examples=("When does the bus go?", "Which bus stops here?", "Is the bus late?")
    )
    classifier = module.Linear()
    classifier.fit([COOKING, bus])
    values = classifier.classify_batch(requests_of([COOKING.negative_examples[0]]))[0].values
    assert values["bus"] > 0.05 > 10 * values["cooking"]


def test_a_section_of_the_background_that_an_adapter_is_about_is_no_background(module: Any) -> None:
    from router.classifiers.regression import read_background

    everything = read_background(module.BACKGROUND, [COOKING])
    medical = read_background(module.BACKGROUND, SAMPLE_ADAPTERS[:1])
    assert "What are the warning signs of a stroke?" in set(everything) - set(medical)
    assert len(medical) > 50


def test_without_examples_it_declines(module: Any) -> None:
    classifier: Classifier = module.Linear()
    assert classifier.classify_batch(requests_of(["x"])) == [None]
    classifier.fit([AdapterProfile("bare", "1")])
    assert classifier.classify_batch(requests_of(["x"])) == [None]


def test_training_is_repeatable_and_never_nan(module: Any) -> None:
    one, two = module.Linear(), module.Linear()
    for classifier in (one, two):
        classifier.fit(SAMPLE_ADAPTERS)
    assert np.array_equal(one._model.weights, two._model.weights)
    assert np.isfinite(one._model.weights).all()


SHORTEN = AdapterProfile(
    "shorten",
    "1",
    task="summarization",
    examples=tuple(
        request
        for ask in ("Shorten this.", "Make it brief:", "Give me the short version.")
        for text in ("The train was late. Nobody knew why.", "Rain fell for days. The river rose.")
        for request in (f"{ask} {text}", f"{text} {ask}")
    ),
)


@pytest.mark.parametrize("text", ["Shorten this.\n\n{}", "{}\n\nShorten this."])
def test_an_instruction_counts_on_either_side_of_a_long_text_of_another_topic(module: Any, text: str) -> None:
    classifier = module.Linear()
    classifier.fit([COOKING, SHORTEN])
    body = " ".join(f"Step {i}: boil the eggs, fry the fish, then bake it all again." for i in range(20))
    (scores,) = classifier.classify_batch(requests_of([text.format(body)]))
    assert scores.values["shorten"] > scores.values["cooking"]


def test_cpu_time_of_a_fit_and_of_a_request(module: Any) -> None:
    """Ten adapters of forty examples; process time, so that a busy machine does not matter."""
    adapters = [
        AdapterProfile(
            f"a{i}", "1", examples=tuple(f"{e} {i} topic{i * 7}" for e in (*COOKING.examples * 7,)[:40])
        )
        for i in range(10)
    ]
    classifier = module.Linear()
    started = time.process_time()
    classifier.fit(adapters)
    assert time.process_time() - started < 1.0
    batch = requests_of(["How long do I boil a kilo of potatoes so that they are soft but whole?"])
    started = time.process_time()
    for _ in range(100):
        classifier.classify_batch(batch)
    assert (time.process_time() - started) / 100 < 0.002


def test_the_fingerprint_is_of_the_background_too(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = module.Linear().fingerprint()
    other = tmp_path / "background.txt"
    other.write_text("# talk\nhello\n")
    monkeypatch.setattr(module, "BACKGROUND", other)
    assert module.Linear().fingerprint() != before


def test_what_was_learned_outlives_the_process(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*adapters: AdapterProfile) -> dict[str, float]:
        classifier = module.Linear()
        classifier.keep(tmp_path)
        classifier.fit(adapters)
        return dict(classifier.classify_batch(requests_of(["how long should I fry the fish"]))[0].values)

    before = started(COOKING, GARDEN)
    fits: list[int] = []
    learn = regression.fit_regression
    monkeypatch.setattr(regression, "fit_regression", lambda *of: fits.append(1) or learn(*of))
    assert started(COOKING, GARDEN) == before
    assert fits == []
    monkeypatch.setattr(module, "PENALTY", 2e-3)
    assert started(COOKING, GARDEN) != before
    assert started(COOKING) != before
    assert fits == [1, 1]
    (tmp_path / "fit").write_bytes(b"damaged")
    assert set(started(COOKING, GARDEN)) == set(before)
    assert fits == [1, 1, 1]
