"""The classifier for requests in other languages: its arithmetic on a toy encoder, and with the model where
that is cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from router.models import has_multilingual
from router.models.encoder import SIZE, Reader
from router.plugins.doctor import requests_of
from router.types import AdapterProfile

MEANINGS = {"weave": "flechten", "basket": "Korb", "bees": "Bienen", "swarm": "schwärmen", "my": "meine"}
WEAVING = AdapterProfile(
    "weaving", "1", examples=tuple(f"weave a basket of {w}" for w in ("willow", "reed", "cane", "straw"))
)
BEES = AdapterProfile(
    "bees", "1", examples=tuple(f"my bees swarm {w}" for w in ("in May", "again", "too early", "at noon"))
)


class Bilingual:
    """A text's vector counts its words, hashed; some German words count as the English ones, and all German
    texts have something in common."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Any:
        self.read += texts
        english = {german: word for word, german in MEANINGS.items()}
        rows = np.full((len(texts), SIZE), 0.01, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                if word in english or not word.isascii():
                    row[0] += 3
                row[sum(map(ord, english.get(word, word))) * 7919 % (SIZE - 1) + 1] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def module(first_party: Callable[[str], ModuleType]) -> Any:
    return first_party("multilingual")


def best(classifier: Any, text: str) -> tuple[str, float]:
    (scores,) = classifier.classify_batch(requests_of([text]))
    name = max(scores.values, key=scores.values.__getitem__)
    return name, scores.values[name]


def test_a_request_in_another_language_is_known_by_its_meaning(module: Any, tmp_path: Path) -> None:
    encoder = Bilingual()
    classifier = module.Multilingual(Reader(lambda: encoder))
    classifier.keep(tmp_path)
    classifier.warmup()
    classifier.fit([WEAVING, BEES])
    asked = ["Wie soll ich einen Korb flechten ?", "meine Bienen schwärmen schon im April"]
    found = [best(classifier, text) for text in asked]
    assert [name for name, _ in found] == ["weaving", "bees"]
    read = len(encoder.read)
    again = module.Multilingual(Reader(lambda: encoder))
    again.keep(tmp_path)
    again.warmup()
    again.fit([WEAVING, BEES])
    assert len(encoder.read) == read + 1  # the warm-up: what was learned is kept
    assert [best(again, text) for text in asked] == found
    again.fit([])
    assert again.classify_batch(requests_of(asked)) == [None, None]


def test_without_the_model_it_says_how_to_get_it(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_multilingual", lambda: False)
    assert "`lora-router models fetch multilingual-e5-small`" in module.Multilingual().lacks()
    monkeypatch.setattr(module, "has_multilingual", lambda: True)
    assert module.Multilingual().lacks() == ""


@pytest.mark.slow
@pytest.mark.skipif(not has_multilingual(), reason="multilingual-e5-small is not fetched here")
def test_the_model_reads_other_languages(module: Any) -> None:
    classifier = module.Multilingual()
    classifier.warmup()
    classifier.fit([WEAVING, BEES])
    for text in ("Comment tresser un panier en osier ?", "怎么用柳条编篮子？"):
        assert best(classifier, text)[0] == "weaving"
    assert best(classifier, "¿Por qué mis abejas abandonan la colmena?")[0] == "bees"
    assert best(classifier, "Wie hoch ist der Eiffelturm?")[1] < 0.5
