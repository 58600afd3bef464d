"""The classifier that learns from examples: on an encoder of words, and on the real one."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from router.models.encoder import SIZE, Reader, sentence_reader
from router.plugins.doctor import requests_of
from router.testing import ClassifierContract
from router.types import AdapterProfile

WEAVING = AdapterProfile(
    "weaving",
    "1",
    examples=tuple(
        f"weave a {thing} of {stuff}"
        for thing in ("basket", "mat")
        for stuff in ("willow", "reed", "cane", "straw")
    ),
)
BEES = AdapterProfile(
    "bees",
    "1",
    examples=tuple(
        f"my bees {do} {when}"
        for do in ("swarm", "fight")
        for when in ("in May", "again", "at noon", "too early")
    ),
)
GENERAL = (
    "cook two eggs",
    "book a flight",
    "tell a joke",
    "what time is it",
    "call my mother",
    "play a song",
)


class Words:
    """A text's vector counts its words, hashed."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Any:
        self.read += texts
        rows = np.full((len(texts), SIZE), 0.01, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.casefold().split():
                row[sum(map(ord, word)) * 7919 % SIZE] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def shipped(first_party: Callable[[str], ModuleType]) -> Any:
    return first_party("examples")


@pytest.fixture
def module(shipped: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The plugin with few general requests, so that a fit takes no time."""
    background = tmp_path / "background.txt"
    lines = [f"{text} {when}" for text in GENERAL for when in ("", "please", "now", "tomorrow")]
    background.write_text("# general\n" + "\n".join(lines))
    monkeypatch.setattr(shipped, "BACKGROUND", (background,))
    return shipped


@pytest.fixture
def words() -> Words:
    return Words()


def made(module: Any, words: Words, *adapters: AdapterProfile, keep: Path | None = None) -> Any:
    """The classifier on that encoder, as it is when it has learned these adapters."""
    classifier = module.Examples(Reader(lambda: words))
    if keep is not None:
        classifier.keep(keep)
    classifier.warmup()
    classifier.fit(adapters)
    return classifier


def asked(classifier: Any, *texts: str) -> list[dict[str, float]]:
    return [dict(scores.values) for scores in classifier.classify_batch(requests_of(texts))]


def routed(classifier: Any, *texts: str) -> list[str]:
    """The adapter that each request goes to; "" is the base."""
    found = []
    for values in asked(classifier, *texts):
        name = max(values, key=values.__getitem__)
        found.append(name if values[name] >= 0.5 else "")
    return found


def test_requests_like_the_examples_are_routed_and_general_ones_are_not(module: Any, words: Words) -> None:
    classifier = made(module, words, WEAVING, BEES)
    texts = ("weave me a basket of willow", "do my bees swarm in June", "cook three eggs", "tell me a joke")
    assert routed(classifier, *texts) == ["weaving", "bees", "", ""]
    assert [routed(classifier, text)[0] for text in texts] == routed(classifier, *texts)


def test_it_says_by_what_it_went(module: Any, words: Words) -> None:
    classifier = made(module, words, WEAVING, BEES)
    exact, like = classifier.classify_batch(requests_of([WEAVING.examples[0], "weave a hat"]))
    assert exact.evidence == "one of its examples"
    assert "none of them: " in like.evidence


# -- examples word for word

OTHERS = tuple(
    AdapterProfile(f"other-{i}", "1", examples=tuple(f"{text} {i} {j}" for text in GENERAL for j in range(3)))
    for i in range(6)
)


@pytest.mark.parametrize("beside", [(), (BEES,), OTHERS], ids=["alone", "beside one", "beside many"])
def test_examples_go_to_the_adapter_that_has_them_whatever_stands_beside(
    module: Any, words: Words, beside: tuple[AdapterProfile, ...]
) -> None:
    odd = replace(WEAVING, examples=(*WEAVING.examples, "tell a joke"))
    classifier = made(module, words, odd, *beside)
    assert asked(classifier, *odd.examples) == [{"weaving": 1.0}] * len(odd.examples)
    assert asked(classifier, "  WEAVE a basket\nof Willow ") == [{"weaving": 1.0}]


def test_an_example_that_two_adapters_claim_is_nobodys_and_the_log_says_so(
    module: Any, words: Words, caplog: pytest.LogCaptureFixture
) -> None:
    thief = AdapterProfile("thief", "1", examples=(*WEAVING.examples[:2], "steal a car"))
    classifier = made(module, words, WEAVING, thief)
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"adapters thief, weaving claim the same example {WEAVING.examples[0]!r}")
    assert warning.endswith(", and 1 more")
    shared, own = asked(classifier, WEAVING.examples[0], WEAVING.examples[2])
    assert 1.0 not in shared.values()
    assert own == {"weaving": 1.0}


# -- what it learns from


def test_an_adapter_without_examples_is_learned_from_its_description_and_keywords(
    module: Any, words: Words
) -> None:
    potter = AdapterProfile(
        "potter",
        "1",
        description="shape a pot of clay on a wheel and glaze it",
        keywords=("kiln", "pottery wheel"),
    )
    classifier = made(module, words, WEAVING, BEES, potter)
    for text in ("shape a pot of clay", "glaze a clay pot", "fire the kiln"):
        (values,) = asked(classifier, text)
        assert max(values, key=values.__getitem__) == "potter", text


def test_a_negative_example_keeps_what_is_like_it_away_and_says_nothing_of_others(
    module: Any, words: Words
) -> None:
    text = "weave a spell of sleep"
    before, bees = (
        made(module, words, WEAVING, BEES),
        AdapterProfile("spells", "1", examples=("cast a spell",)),
    )
    (free,) = asked(before, text)
    taught = replace(WEAVING, negative_examples=(text,))
    (held,) = asked(made(module, words, taught, BEES), text)
    assert held["weaving"] < free["weaving"] / 2
    (other,) = asked(made(module, words, taught, bees), text)
    assert other["spells"] > other["weaving"]


def test_a_general_request_of_an_adapters_own_subject_is_not_held_against_it(
    module: Any, words: Words
) -> None:
    wit = AdapterProfile("wit", "1", domain="jokes", examples=("tell a pun", "make me laugh"))
    path = module.BACKGROUND[0]
    path.write_text(path.read_text() + "\n# jokes\nknow any riddle\nriddle me this\n")
    (kept,) = asked(made(module, words, WEAVING, wit), "know any riddle")
    (against,) = asked(made(module, words, WEAVING, replace(wit, domain="")), "know any riddle")
    assert kept["wit"] > 2 * against["wit"]


def test_a_fit_finds_how_many_examples_reach_each_adapter(module: Any, words: Words) -> None:
    bare = AdapterProfile("bare", "1", description="bare")
    classifier = made(module, words, WEAVING, BEES, bare)
    found = classifier.findings()
    assert found.keys() == {"weaving", "bees", "bare"}
    assert " of its 8 examples " in found["weaving"]
    assert found["bare"].startswith("it has no examples")
    classifier.fit([])
    assert classifier.findings() == {}


def test_empty_texts_and_nothing_to_learn_are_declined(module: Any, words: Words) -> None:
    classifier = made(module, words, WEAVING, BEES)
    answers = classifier.classify_batch(requests_of(["", "weave a mat", " "]))
    assert [answer is None for answer in answers] == [True, False, True]
    for nothing in ([], [AdapterProfile("bare", "1")]):
        classifier.fit(nothing)
        assert classifier.classify_batch(requests_of(["weave a mat"])) == [None]
    assert module.Examples(Reader(lambda: words)).classify_batch(requests_of(["x"])) == [None]


# -- many adapters


def test_of_many_adapters_the_nearest_examples_decide(
    module: Any, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY", 1)
    classifier = made(module, words, WEAVING, BEES)
    texts = ("weave me a basket of willow", "do my bees swarm in May", "cook two eggs soon")
    assert routed(classifier, *texts) == ["weaving", "bees", ""]
    assert asked(classifier, BEES.examples[0]) == [{"bees": 1.0}]


# -- what is kept


def test_a_new_fit_reads_only_what_is_new(module: Any, words: Words) -> None:
    classifier = made(module, words, WEAVING, BEES)
    words.read.clear()
    classifier.fit([WEAVING, BEES, AdapterProfile("pots", "1", examples=("throw a pot",))])
    assert words.read == ["throw a pot"]


def test_a_restart_finds_the_fit_in_its_folder(
    module: Any, words: Words, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "weave a small mat"
    before = asked(made(module, words, WEAVING, BEES, keep=tmp_path), text)
    fits: list[int] = []
    learn = module.SoftmaxRegression.fit
    monkeypatch.setattr(module.SoftmaxRegression, "fit", lambda *of: fits.append(1) or learn(*of))
    assert asked(made(module, words, WEAVING, BEES, keep=tmp_path), text) == before
    assert fits == []
    made(module, words, WEAVING, keep=tmp_path)
    assert fits == [1]
    made(module, words, WEAVING, BEES, keep=tmp_path)
    (tmp_path / "fit").write_bytes(b"damaged")
    assert asked(made(module, words, WEAVING, BEES, keep=tmp_path), text) == before


def test_a_close_ends_learning(module: Any) -> None:
    class Closing(Words):
        def __call__(self, texts: Sequence[str]) -> Any:
            classifier.close()
            return super().__call__(texts)

    words = Closing()
    classifier = module.Examples(Reader(lambda: words))
    classifier.warmup()
    with pytest.raises(RuntimeError, match="closed while learning"):
        classifier.fit([WEAVING, BEES])
    assert len(words.read) < 40  # of the 16 examples and 24 general requests


def test_the_fingerprint_is_of_encoder_and_general_requests(module: Any, words: Words) -> None:
    def fingerprint(maker: str) -> str:
        return str(module.Examples(Reader(lambda: words, maker=maker)).fingerprint())

    before = fingerprint("words/1")
    assert fingerprint("words/1") == before != fingerprint("words/2")
    module.BACKGROUND[0].write_text("# talk\nhello\n")
    assert fingerprint("words/1") != before


# -- the plugin, and the real encoder


def test_without_the_encoder_the_start_fails_with_the_reason(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise OSError("not cached")

    monkeypatch.setattr("router.models.encoder.fetch_encoder", absent)
    with pytest.raises(OSError, match="not cached"):
        module.Examples(sentence_reader.__wrapped__()).warmup()


def test_loading_the_plugin_imports_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from router.plugins import PluginHost\n"
        "host = PluginHost([Path('plugins')], 'examples'); host.refresh()\n"
        "print([r.name for r in host.registrations()], 'torch' in sys.modules)"
    )
    root = __file__.rsplit("/tests/", 1)[0]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert shown.stdout.strip() == "['examples'] False"


@pytest.mark.slow
class TestRealEncoder(ClassifierContract):
    timeout_ms = 1000

    @pytest.fixture(autouse=True)
    def _classifier(self, shipped: Any) -> None:
        self.make = shipped.Examples

    def test_meaning_counts(self) -> None:
        classifier = self.fitted()
        (values,) = asked(classifier, "My head aches and I feel dizzy, what could it be?")
        assert max(values, key=values.__getitem__) == "medical"
        assert routed(classifier, "Which wine goes with a mushroom risotto?") == [""]
