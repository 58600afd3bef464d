"""What classifiers learn from adapters with: training sets, n-grams, and the regression."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.classifiers.regression import (
    SoftmaxRegression,
    TrainingSet,
    balanced_weights,
    best_scores,
    file_digest,
    fit_dual,
    ngrams,
    penalty_of,
    read_background,
    softmax,
    spread_evenly,
    training_set_of,
)
from router.types import AdapterProfile

# -- training sets

TEA = AdapterProfile("tea", "1", examples=("brew tea", " "), negative_examples=("a tea towel",))
ALE = AdapterProfile("ale", "1", description="All about ale", examples=("draw ale",), keywords=("beer",))
BARE = AdapterProfile("bare", "1")
PASSAGE = "Context: the pool opens at seven. When does the pool open?"


@pytest.fixture
def background(tmp_path: Path) -> Path:
    path = tmp_path / "background.txt"
    path.write_text("# general\nhello\n\n# tea drinks\nWhich tea is green?\n# beer\nWhich beer is dark?\n")
    return path


def rows_of(learned: TrainingSet | None) -> list[tuple[str, list[str], bool]]:
    """Each text, the classes that it may be of, and whether it is like a request."""
    assert learned is not None
    classes = [[learned.names[i] for i in np.flatnonzero(row)] for row in learned.allowed]
    return list(zip(learned.texts, classes, learned.examples.tolist(), strict=True))


def test_examples_negative_examples_descriptions_and_background(background: Path) -> None:
    learned = training_set_of([TEA, BARE, ALE], background)
    assert learned is not None
    assert learned.names == ("tea", "ale", "")
    assert rows_of(learned) == [
        ("brew tea", ["tea"], True),
        ("a tea towel", ["ale", ""], False),
        ("draw ale", ["ale"], True),
        ("All about ale", ["ale"], False),
        ("hello", [""], True),
        ("Which beer is dark?", [""], True),
    ]


def test_without_examples_an_adapter_is_learned_from_description_name_and_keywords() -> None:
    described = AdapterProfile("pale-ale", "1", description="All about ale", keywords=("hops", "malt"))
    rows = rows_of(training_set_of([described]))
    assert {"All about ale", "pale ale", "hops", "malt"} <= {text for text, _, _ in rows}
    assert all(classes == ["pale-ale"] and not like_a_request for _, classes, like_a_request in rows)


def test_examples_without_a_passage_of_an_adapter_that_needs_one_are_for_none() -> None:
    qa = AdapterProfile("qa", "1", examples=(PASSAGE, "When does it open?"), needs_passage=True)
    assert rows_of(training_set_of([qa])) == [(PASSAGE, ["qa"], True), ("When does it open?", [""], True)]


def test_nothing_to_learn(background: Path) -> None:
    assert training_set_of([BARE], background) is None


def test_a_section_that_an_adapter_is_about_is_no_background(background: Path) -> None:
    assert read_background(background, [BARE]) == ["hello", "Which tea is green?", "Which beer is dark?"]
    for adapter in (TEA, replace(BARE, domain="drinks"), replace(BARE, task="tea")):
        assert read_background(background, [adapter]) == ["hello", "Which beer is dark?"]


def test_many_examples_are_thinned_evenly() -> None:
    texts = [f"t{i}" for i in range(100)]
    assert spread_evenly(texts, 4) == ["t0", "t25", "t50", "t75"]
    assert spread_evenly(texts, 1000) == texts


def test_the_key_is_of_all_that_is_learned_and_of_who_learns_it(background: Path) -> None:
    def key(*adapters: AdapterProfile, maker: str = "m") -> bytes:
        learned = training_set_of(adapters, background)
        assert learned is not None
        return learned.key(maker)

    assert key(TEA, ALE) == key(TEA, ALE)
    more = replace(ALE, examples=(*ALE.examples, "pour ale"))
    moved = replace(ALE, examples=(), negative_examples=("draw ale",))
    keys = {key(TEA, ALE), key(ALE, TEA), key(TEA, more), key(TEA, moved), key(TEA, ALE, maker="n")}
    assert len(keys) == 5


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "background.txt"
    path.write_text("# talk\nhello\n")
    first = file_digest(path)
    assert file_digest(path) == first
    path.write_text("# talk\nhello you\n")
    assert file_digest(path) != first


# -- n-grams


def nearness(one: str, other: str) -> float:
    a, b = ngrams([one, other])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_texts_with_the_same_words_are_near() -> None:
    assert nearness("Bees dance in the hive", "bees DANCE, in the hive!") == pytest.approx(1)
    assert nearness("Bees dance in the hive", "Where do bees dance?") > 0.2
    assert nearness("Bees dance in the hive", "Quantum ship yards") < 0.1
    assert nearness("summarize", "summarizing") > 0.2  # by runs of bytes


def test_first_and_last_sentence_of_a_long_text_count_more_than_its_middle() -> None:
    filler = "The train was late again and nobody knew why. " * 10
    near = [
        nearness(text, "Sum it up.")
        for text in (f"Sum it up. {filler}", f"{filler} Sum it up.", f"{filler} Sum it up. {filler}")
    ]
    assert min(near[:2]) > 2 * near[2]


def test_texts_without_words_are_finite() -> None:
    assert np.isfinite(ngrams(["?! 😀", "", "hello"])).all()


# -- softmax regression by its dual


def test_the_gradient_steps_reach_the_optimum() -> None:
    """Oracle: plain gradient descent, run long, on the same objective."""
    penalty = 0.02
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    allowed = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    allowed[-1] = (1, 1, 0)
    gram = x @ x.T
    fast = fit_dual(gram, allowed, penalty, 200)
    weight, slow = balanced_weights(allowed)[:, None], np.zeros_like(allowed)
    for _ in range(5000):
        p = softmax(gram @ slow)
        q = p * allowed / (p * allowed).sum(1, keepdims=True)
        slow -= 0.5 * (weight * (p - q) + penalty * slow)
    assert np.abs(gram @ fast - gram @ slow).max() < 0.02


def test_every_class_weighs_the_same() -> None:
    allowed = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    assert np.allclose(balanced_weights(allowed), [1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_few_examples_are_penalised_more_than_many() -> None:
    few, many = (np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], n)] for n in ([8, 8, 100], [80, 80, 100]))
    assert penalty_of(few) == pytest.approx(10 * penalty_of(many))


def test_an_adapter_with_many_examples_does_not_lower_the_penalty_of_two_others() -> None:
    beside = np.eye(4, dtype=np.float32)[np.repeat([0, 1, 2, 3], [8, 8, 500, 100])]
    alone = np.eye(4, dtype=np.float32)[np.repeat([0, 1, 2, 3], [8, 8, 8, 100])]
    assert penalty_of(beside) == pytest.approx(penalty_of(alone))


# -- a fit

SIZE = 16
WORDS = {"tea": "brew steep leaf", "ale": "draw pint foam", "": "train ticket platform"}


def training_set(count: int = 24) -> TrainingSet:
    """Examples of tea and of ale, and general ones, as many of each."""
    names = ("tea", "ale", "")
    texts = tuple(f"{WORDS[name].split()[i % 3]} number {i}" for name in names for i in range(count))
    allowed = np.repeat(np.eye(3, dtype=np.float32), count, axis=0)
    return TrainingSet(names, texts, allowed, np.ones(len(texts), bool))


def vectors_of(owners: Any, seed: int = 1) -> Any:
    """Unit vectors [texts, 3 * SIZE], near one direction for each owner."""
    rng = np.random.default_rng(seed)
    rows = np.eye(SIZE)[owners] + 0.1 * rng.normal(size=(len(owners), SIZE))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.tile(rows, 3).astype(np.float32)


def test_a_fit_finds_the_classes_and_routes_at_its_level() -> None:
    learned = training_set()
    owners = learned.allowed.argmax(axis=1)
    model = SoftmaxRegression.fit(learned, vectors_of(owners))
    assert model.confusion.tolist() == [[24, 0, 0], [0, 24, 0], [0, 0, 24]]
    chances = model.chances(["brew leaf", "draw a pint", "train"], vectors_of([0, 1, 2], seed=2))
    assert chances.sum(axis=1) == pytest.approx(1)
    assert chances.argmax(axis=1).tolist() == [0, 1, 2]
    assert chances[0, 0] > model.level
    assert chances[1, 1] > model.level
    assert chances[2, :-1].max() < model.level


def test_what_the_texts_do_not_tell_reaches_no_level() -> None:
    """A text is left out of the fit that says whose it is: what was learned by heart counts for nothing."""
    learned = training_set()
    shuffled = np.random.default_rng(3).permutation(len(learned.texts))
    noise = replace(learned, texts=tuple(learned.texts[i] for i in shuffled))
    vectors = vectors_of(learned.allowed.argmax(axis=1)[shuffled])
    model = SoftmaxRegression.fit(noise, vectors)
    known = model.chances(noise.texts, vectors)
    assert (known[:, :-1].max(axis=1) < model.level).mean() > 0.9
    assert model.confusion[:, :-1].sum() < len(noise.texts) / 4


def test_a_fit_is_repeatable_and_what_is_kept_of_it_is_all_of_it() -> None:
    learned = training_set()
    vectors = vectors_of(learned.allowed.argmax(axis=1))
    one, two = (SoftmaxRegression.fit(learned, vectors) for _ in range(2))
    back = SoftmaxRegression.of(one.arrays())
    assert back.level == pytest.approx(one.level)
    for other in (two, back):
        assert np.array_equal(other.chances(learned.texts, vectors), one.chances(learned.texts, vectors))
        assert np.array_equal(other.confusion, one.confusion)


def test_the_best_adapters_are_answered_and_none_is_the_evidence() -> None:
    names = (*(f"a{i}" for i in range(20)), "")
    chances = np.append(np.arange(20) / 400, 0.525)
    found = best_scores(names, chances)
    assert next(iter(found.values)) == "a19"
    assert "" not in found.values
    assert 1 < len(found.values) < 20
    assert found.evidence == "none of them: 0.53"
    assert best_scores(names, chances, "why").evidence == "why"
