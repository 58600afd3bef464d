"""The embedding classifier: its arithmetic on a toy encoder, and the real encoder where it is cached."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from router.models.encoder import Reader, sentence_reader
from router.plugins.doctor import requests_of
from router.testing import ClassifierContract
from router.types import AdapterProfile

torch = pytest.importorskip("torch")

A = AdapterProfile("a", "1", examples=("aaaa", "aaab", "aaac"), negative_examples=("aaaz",))
B = AdapterProfile("b", "1", examples=("bbbb", "bbba"))


class Letters:
    """Counts letters: as good an encoder as these tests need."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.batches: list[int] = []

    def __call__(self, texts: Any) -> Any:
        self.encoded += texts
        self.batches.append(len(texts))
        rows = np.array(
            [[t.count(c) + 0.01 for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def module(first_party: Callable[[str], ModuleType]) -> Any:
    return first_party("embedding")


@pytest.fixture
def letters() -> Letters:
    return Letters()


def made(module: Any, letters: Letters) -> Any:
    """The classifier with that encoder."""
    classifier = module.Embedding(Reader(lambda: letters))
    classifier.warmup()
    return classifier


@pytest.fixture
def toy(module: Any, letters: Letters) -> Any:
    classifier = made(module, letters)
    classifier.fit([A, B])
    return classifier


def values(classifier: Any, text: str) -> dict[str, float]:
    return dict(classifier.classify_batch(requests_of([text]))[0].values)


def test_the_nearest_adapter_wins(toy: Any) -> None:
    assert values(toy, "bbb")["b"] > 0.5
    assert values(toy, "aaac")["a"] > values(toy, "aaac")["b"]


def test_newcomers_are_told_apart_by_few_of_many_examples_up_to_64_adapters(
    module: Any, letters: Letters
) -> None:
    classifier = module.Newcomers(Reader(lambda: letters))
    classifier.warmup()
    many = replace(A, examples=tuple("a" * i for i in range(1, 60)))
    classifier.fit([many, B])
    assert values(classifier, "bbb")["b"] > 0.5
    classifier.fit([replace(B, name=f"b{i}") for i in range(module.MOST_ADAPTERS + 1)])
    assert classifier.classify_batch(requests_of(["bbb"])) == [None]


def test_with_many_examples_the_nearest_adapter_wins_and_the_background_goes_to_none(
    module: Any, letters: Letters
) -> None:
    classifier = made(module, letters)
    many = {letter: tuple(f"{letter * 5} {i}" for i in range(40)) for letter in "ab"}
    classifier.fit([AdapterProfile(letter, "1", examples=examples) for letter, examples in many.items()])
    assert values(classifier, "bbb")["b"] > 0.5
    assert max(values(classifier, "What should I cook tonight with two eggs?").values()) < 0.2


def test_what_looks_like_the_background_goes_to_none(toy: Any) -> None:
    assert max(values(toy, "What should I cook tonight with two eggs?").values()) < 0.2


@pytest.mark.slow
def test_a_new_fit_encodes_only_what_is_new_and_forgets_what_is_gone(toy: Any, letters: Letters) -> None:
    letters.encoded.clear()
    toy.fit([A, B, AdapterProfile("c", "1", examples=("cccc",))])
    assert letters.encoded == ["cccc"]
    toy.fit([A])
    assert "bbbb" not in toy._known


def test_what_was_learned_outlives_the_process_for_the_same_encoder(
    module: Any, letters: Letters, tmp_path: Path
) -> None:
    def started(maker: str) -> Any:
        classifier = module.Embedding(Reader(lambda: letters, maker=maker))
        classifier.keep(tmp_path)
        classifier.warmup()
        letters.encoded.clear()
        classifier.fit([A, B])
        return classifier

    before = values(started("letters/1"), "bbb")
    assert letters.encoded
    assert values(started("letters/1"), "bbb") == before
    assert letters.encoded == ["bbb"]
    started("letters/2")
    assert len(letters.encoded) > 100


def test_parts_of_a_long_request_are_encoded_apart_and_short_ones_together(
    toy: Any, letters: Letters
) -> None:
    letters.encoded.clear()
    letters.batches.clear()
    long = "Say b. " + "aaaa " * 60 + ". Say c."
    toy.classify_batch(requests_of([long, "bbb"]))
    assert {long, "Say b.", "Say c.", "bbb"} == set(letters.encoded)
    assert letters.batches == [3, 1]


def test_empty_text_and_no_examples_are_declined(module: Any, toy: Any) -> None:
    assert toy.classify_batch(requests_of(["", "bbb", " "]))[::2] == [None, None]
    toy.fit([AdapterProfile("bare", "1")])
    assert toy.classify_batch(requests_of(["bbb"])) == [None]
    assert module.Embedding().classify_batch(requests_of(["bbb"])) == [None]


def test_without_the_encoder_the_fit_fails_with_the_reason(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise OSError("not cached")

    monkeypatch.setattr("router.models.encoder.fetch_encoder", absent)
    classifier = module.Embedding(sentence_reader.__wrapped__())
    with pytest.raises(OSError, match="not cached"):
        classifier.warmup()
    with pytest.raises(RuntimeError, match="not loaded"):
        classifier.fit([A])


def test_loading_the_plugin_imports_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from router.plugins import PluginHost\n"
        "host = PluginHost([Path('plugins')], 'embedding'); host.refresh()\n"
        "print([r.name for r in host.registrations()], 'torch' in sys.modules)"
    )
    root = __file__.rsplit("/tests/", 1)[0]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert shown.stdout.strip() == "['embedding', 'newcomers'] False"


@pytest.mark.slow
class TestRealEncoder(ClassifierContract):
    timeout_ms = 1000

    @pytest.fixture(autouse=True)
    def _classifier(self, module: Any) -> None:
        self.make = module.Embedding

    def test_meaning_counts(self) -> None:
        classifier = self.fitted()
        (scores,) = classifier.classify_batch(
            requests_of(["My head aches and I feel dizzy, what could it be?"])
        )
        assert scores is not None
        assert max(scores.values, key=scores.values.__getitem__) == "medical"
