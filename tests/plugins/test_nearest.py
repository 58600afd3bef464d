"""The classifier that scales: its arithmetic on a toy encoder, and the real one where it is cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from router.models.encoder import Reader
from router.plugins.doctor import requests_of
from router.testing import ClassifierContract
from router.types import AdapterProfile

WEAVING = AdapterProfile(
    "weaving", "1", examples=tuple(f"weave a basket of {w}" for w in ("willow", "reed", "cane", "straw"))
)
BEES = AdapterProfile(
    "bees", "1", examples=tuple(f"my bees {w}" for w in ("swarm in May", "left the hive", "make no honey"))
)
SIZE = 64


class Words:
    """A text's vector counts its words, hashed: as good an encoder as these tests need."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Any:
        self.read += texts
        rows = np.full((len(texts), SIZE), 0.01, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[sum(map(ord, word)) * 7919 % SIZE] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def module(first_party: Callable[[str], ModuleType]) -> Any:
    return first_party("nearest")


@pytest.fixture
def encoder() -> Words:
    return Words()


@pytest.fixture
def make(module: Any, encoder: Words) -> Callable[[], Any]:
    def made(keep: Path | None = None) -> Any:
        classifier = module.Nearest(Reader(lambda: encoder))
        if keep is not None:
            classifier.keep(keep)
        classifier.warmup()
        return classifier

    return made


def values(classifier: Any, text: str) -> dict[str, float]:
    (scores,) = classifier.classify_batch(requests_of([text]))
    return dict(scores.values) if scores else {}


def test_the_nearest_is_sure_and_strangers_are_nobodys(make: Any) -> None:
    classifier = make()
    classifier.fit([WEAVING, BEES])
    found = values(classifier, "weave a basket of rattan")
    assert found["weaving"] > 0.5 > found["bees"]
    assert max(values(classifier, "What should I cook tonight with two eggs?").values()) < 0.5


def test_one_more_is_learned_by_itself(make: Any, encoder: Words) -> None:
    classifier = make()
    classifier.fit([WEAVING])
    before = values(classifier, "weave a basket of rattan")["weaving"]
    encoder.read.clear()
    classifier.fit([WEAVING, BEES])
    assert set(encoder.read) == set(BEES.examples)
    assert values(classifier, "weave a basket of rattan")["weaving"] == pytest.approx(before, abs=0.02)
    assert values(classifier, "my bees sting")["bees"] > 0.5


def test_one_that_goes_is_forgotten_and_one_that_changes_learned_anew(make: Any) -> None:
    classifier = make()
    classifier.fit([WEAVING, BEES])
    classifier.fit([BEES])
    assert "weaving" not in values(classifier, "weave a basket of rattan")
    classifier.fit([AdapterProfile("bees", "2", examples=WEAVING.examples)])
    assert values(classifier, "weave a basket of rattan")["bees"] > 0.5
    classifier.fit([AdapterProfile("bees", "3")])
    assert values(classifier, "weave a basket of rattan") == {}
    classifier.fit([])
    assert values(classifier, "weave a basket of rattan") == {}


def test_what_is_made_of_strangers_outlives_the_process(
    make: Any, module: Any, encoder: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tmp_path)
    first.fit([WEAVING, BEES])
    before = values(first, "weave a basket of rattan")
    encoder.read.clear()
    monkeypatch.setattr(module, "principal", lambda rows: pytest.fail("it computes again"))
    again = make(tmp_path)
    again.fit([WEAVING, BEES])
    assert encoder.read == ["warm up"]
    assert values(again, "weave a basket of rattan") == pytest.approx(before, abs=1e-2)


def test_a_negative_example_bars(make: Any) -> None:
    classifier = make()
    barred = AdapterProfile(
        "weaving", "1", examples=WEAVING.examples, negative_examples=("weave a basket of lies",)
    )
    classifier.fit([barred])
    assert values(classifier, "weave a basket of lies") == {}
    assert values(classifier, "weave a basket of willow")["weaving"] > 0.5


def test_description_and_keywords_stand_for_examples(make: Any) -> None:
    classifier = make()
    classifier.fit([AdapterProfile("bees", "1", description="all about bees and honey", keywords=("hive",))])
    assert values(classifier, "all about bees and honey")["bees"] > 0.3


def test_a_damaged_file_costs_nothing_but_time(make: Any, encoder: Words, tmp_path: Path) -> None:
    make(tmp_path).fit([WEAVING])
    (tmp_path / "vectors.sqlite").write_bytes(b"\x00" * 9000)
    again = make(tmp_path)
    again.fit([WEAVING])
    assert values(again, "weave a basket of rattan")["weaving"] > 0.5


def test_a_broad_adapter_is_judged_without_a_near_example(
    make: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEAR", 1)
    broad = AdapterProfile(
        "broad", "1", examples=tuple(f"weave cloth {i}x{i}y" for i in range(module.BROAD + 1))
    )
    classifier = make()
    classifier.fit([broad, WEAVING])
    assert set(values(classifier, "weave a basket of willow")) == {"broad", "weaving"}


def test_empty_texts_are_declined(make: Any) -> None:
    classifier = make()
    classifier.fit([WEAVING])
    assert classifier.classify_batch(requests_of(["", "  "])) == [None, None]


def test_before_the_warmup_it_says_so(module: Any) -> None:
    classifier = module.Nearest(Reader(Words))
    assert classifier.classify_batch(requests_of(["a"])) == [None]
    with pytest.raises(RuntimeError, match="not warmed up"):
        classifier.fit([WEAVING])


@pytest.mark.slow
class TestRealEncoder(ClassifierContract):
    timeout_ms = 1000

    @pytest.fixture(autouse=True)
    def _classifier(self, module: Any) -> None:
        self.make = module.Nearest
