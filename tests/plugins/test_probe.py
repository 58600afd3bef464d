"""The probe: its arithmetic on a toy base, the contract, and the real base where it is cached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from router.config import Settings
from router.plugins.doctor import SAMPLE_ADAPTERS, requests_of
from router.testing import ClassifierContract
from router.types import AdapterProfile

A = AdapterProfile("a", "1", examples=("aaaa", "aaab", "aaac"), negative_examples=("aaaz",))
B = AdapterProfile("b", "1", examples=("bbbb", "bbba", "bbbc"))


class Letters:
    """A base whose hidden states count letters."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.asked: list[tuple[str, float, bool]] = []
        self.weight = 1.0

    def hidden(
        self, texts: Any, *, context: str = "", depth: float = 0.5, ends: int = 0, background: bool = False
    ) -> Any:
        self.read += texts
        self.asked.append((context, depth, background))
        alphabet = "abcdefghijklmnopqrstuvwxyz"
        parts = [(t, t[:ends], t[-ends:]) for t in map(str.lower, texts)]
        counts = [[p.count(c) for p in row for c in alphabet] for row in parts]
        return self.weight * np.array(counts, np.float32)

    def likelihood(self, prompt: str, continuations: Any, *, background: bool = False) -> Any:
        raise AssertionError("the probe asks for hidden states only")


@pytest.fixture(scope="module")
def module(first_party: Callable[[str], ModuleType]) -> Any:
    return first_party("probe")


@pytest.fixture
def base() -> Letters:
    return Letters()


@pytest.fixture
def toy(module: Any, base: Letters) -> Any:
    classifier = module.Probe()
    classifier.bind(base)
    classifier.fit([A, B])
    return classifier


def values(classifier: Any, text: str) -> dict[str, float]:
    return dict(classifier.classify_batch(requests_of([text]))[0].values)


def test_it_learns_what_tells_adapters_apart(toy: Any) -> None:
    assert values(toy, "bbb")["b"] > 0.8
    assert values(toy, "aaac")["a"] > 0.8
    assert max(values(toy, "What should I cook tonight with two eggs?").values()) < 0.2


def test_an_instruction_counts_at_either_end_of_a_long_text(toy: Any) -> None:
    text, order = "the quick lazy fox jumps over the other dog " * 8, "bbbb bbbb bbbb bbb "
    inside = values(toy, text + order + text)["b"]
    for asked in (order + text + text, text + text + order.strip()):
        assert values(toy, asked)["b"] > 2 * inside


def test_a_negative_example_pulls_down(module: Any, toy: Any, base: Letters) -> None:
    plain = module.Probe()
    plain.bind(base)
    plain.fit([AdapterProfile("a", "1", examples=A.examples), B])
    assert values(toy, "aaaz")["a"] < values(plain, "aaaz")["a"]


def test_a_new_fit_reads_only_what_is_new_and_forgets_what_is_gone(toy: Any, base: Letters) -> None:
    base.read.clear()
    toy.fit([A, B, AdapterProfile("c", "1", examples=("cccc",))])
    assert base.read == ["cccc"]
    toy.fit([A])
    assert "bbbb" not in toy._vectors


def test_what_it_read_outlives_the_process_but_not_a_change_of_base(module: Any, tmp_path: Path) -> None:
    def started(base: Letters) -> Any:
        classifier = module.Probe()
        classifier.keep(tmp_path)
        classifier.bind(base)
        classifier.fit([A, B])
        return classifier

    first, second, other = Letters(), Letters(), Letters()
    before = started(first)
    after = started(second)
    assert len(first.read) > len(A.examples) > len(second.read) == 1  # what tells bases apart
    assert values(after, "bbb") == values(before, "bbb")
    other.weight = 2.0
    started(other)
    assert len(other.read) >= len(first.read) - 1  # a text without letters is the same to both


def test_what_it_learned_outlives_the_process(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started() -> Any:
        classifier = module.Probe()
        classifier.keep(tmp_path)
        classifier.bind(Letters())
        classifier.fit([A, B])
        return classifier

    before = values(started(), "bbb")
    (tmp_path / "states.sqlite").unlink()  # only what was learned is left
    monkeypatch.setattr(module, "_train", lambda *of: pytest.fail("it learns again"))
    assert values(started(), "bbb") == before


def test_a_damaged_file_and_states_too_large_for_it_are_read_anew(module: Any, tmp_path: Path) -> None:
    (tmp_path / "states.sqlite").write_bytes(b"no database " * 400)
    for weight in (1.0, 1.0, 1e6):
        base, classifier = Letters(), module.Probe()
        base.weight = weight
        classifier.keep(tmp_path)
        classifier.bind(base)
        classifier.fit([A, B])
        assert max(values(classifier, "bbb"), key=lambda name: values(classifier, "bbb")[name]) == "b"
    assert len(base.read) > len(A.examples)


def test_fits_go_behind_requests_and_the_depth_is_a_parameter(module: Any) -> None:
    base, classifier = Letters(), module.Probe(depth=0.25)
    classifier.bind(base)
    classifier.fit([A, B])
    values(classifier, "bbb")
    assert {entry[1] for entry in base.asked} == {0.25}
    assert [entry[2] for entry in base.asked][-2:] == [True, False]
    assert classifier.fingerprint() != module.Probe().fingerprint()


def test_empty_text_and_no_examples_are_declined(module: Any, toy: Any) -> None:
    assert toy.classify_batch(requests_of(["", "bbb", " "]))[::2] == [None, None]
    toy.fit([AdapterProfile("bare", "1")])
    assert toy.classify_batch(requests_of(["bbb"])) == [None]
    assert module.Probe().classify_batch(requests_of(["bbb"])) == [None]


def test_without_a_base_the_fit_fails_with_the_reason(module: Any) -> None:
    with pytest.raises(RuntimeError, match="not bound"):
        module.Probe().fit([A])


class TestContract(ClassifierContract):
    timeout_ms = 1000

    @pytest.fixture(autouse=True)
    def _classifier(self, module: Any) -> None:
        self.make = module.Probe


@pytest.fixture
def engine() -> Iterator[Any]:
    from router.engine.torch_engine import TorchEngine

    made = TorchEngine(Settings(cache_tokens=8192))
    made.start()
    yield made
    made.close()


@pytest.mark.long
async def test_meaning_counts_on_the_real_base(module: Any, engine: Any) -> None:
    from router.engine.base_model import EngineBaseModel

    classifier = module.Probe()
    classifier.bind(EngineBaseModel(engine, 30.0))
    await asyncio.to_thread(classifier.fit, SAMPLE_ADAPTERS)
    asked = requests_of(
        ["My head aches and I feel dizzy, what could it be?", "Tell me a joke about penguins."]
    )
    medical, none = await asyncio.to_thread(classifier.classify_batch, asked)
    assert max(medical.values, key=medical.values.__getitem__) == "medical"
    assert max(none.values.values()) < 0.5
