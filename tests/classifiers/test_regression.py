"""What shipped classifiers learn with: training sets, n-grams, parts of a request, and the regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.classifiers.regression import (
    BUCKETS,
    COMMON,
    PARTS,
    TILE,
    WIDTH,
    Ngrams,
    balanced_weights,
    file_digest,
    fit_dual,
    gram_in_pieces,
    product_in_pieces,
    softmax,
    sparse_gram,
    spread_evenly,
    training_set_of,
)
from router.types import AdapterProfile


def test_the_gradient_steps_reach_the_optimum() -> None:
    """Oracle: plain gradient descent, run long, on the same objective."""
    penalty = 0.02
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    allowed = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    allowed[-1] = (1, 1, 0)
    gram = x @ x.T
    fast = fit_dual(gram, allowed, penalty)
    weight, slow = balanced_weights(allowed)[:, None], np.zeros_like(allowed)
    for _ in range(5000):
        p = softmax(gram @ slow)
        q = p * allowed / (p * allowed).sum(1, keepdims=True)
        slow -= 0.5 * (weight * (p - q) + penalty * slow)
    assert np.abs(gram @ fast - gram @ slow).max() < 0.02


def test_the_pieces_of_a_product_make_the_product() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(300, 300)), rng.normal(size=(300, 40))
    assert np.allclose(product_in_pieces(a, b), a @ b)
    assert not product_in_pieces(np.zeros((5, 0)), np.zeros((0, 5))).any()


@pytest.mark.parametrize("shape", [(1, 1), (TILE + 1, 2 * TILE), (5, 3 * TILE + 1), (4, 0)])
def test_the_tiles_of_a_gram_matrix_make_it(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(2).normal(size=shape)
    assert np.allclose(gram_in_pieces(rows), rows @ rows.T)


@pytest.mark.parametrize(
    ("width", "share"),
    [(400, COMMON / 2), (400, COMMON), (WIDTH + 300, 0.3), (50, 0.0)],
    ids=["rare columns", "rare and common ones", "more common ones than are kept at a time", "no entries"],
)
def test_a_sparse_gram_matrix_is_that_of_the_dense_rows(width: int, share: float) -> None:
    rng = np.random.default_rng(3)
    dense = np.where(rng.random((150, width)) < share, rng.normal(size=(150, width)), 0).astype(np.float32)
    dense[7] = 0
    rows, columns = np.nonzero(dense)
    made = sparse_gram(rows, columns, dense[rows, columns], len(dense))
    assert made.dtype == np.float32
    assert np.allclose(made, dense.astype(float) @ dense.T.astype(float), rtol=1e-5, atol=1e-5)


def test_every_class_weighs_the_same() -> None:
    allowed = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    assert np.allclose(balanced_weights(allowed), [1 / 6, 1 / 6, 1 / 6, 1 / 2])


TEA = AdapterProfile("tea", "1", examples=("brew tea", " "), negative_examples=("a tea towel",))
BARE = AdapterProfile("bare", "1")


@pytest.fixture
def background(tmp_path: Path) -> Path:
    path = tmp_path / "background.txt"
    path.write_text("# general\nhello\n\n# tea drinks\nWhich tea is green?\n")
    return path


def test_examples_negatives_and_background(background: Path) -> None:
    learned = training_set_of([TEA, BARE, AdapterProfile("ale", "1", examples=("draw ale",))], background)
    assert learned is not None
    assert learned.names == ("tea", "ale", "")
    assert learned.texts == ("brew tea", "a tea towel", "draw ale", "hello")
    assert learned.allowed.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1]]


def test_nothing_to_learn(background: Path) -> None:
    assert training_set_of([BARE], background) is None


def test_many_examples_are_thinned_evenly() -> None:
    texts = [f"t{i}" for i in range(100)]
    assert spread_evenly(texts, 4) == ["t0", "t25", "t50", "t75"]
    assert spread_evenly(texts, 1000) == texts


TEXTS = ["Sum it up. Bees dance in the hive.", "Bees dance", "Ants march"]


def dense(ngrams: Ngrams, part: int) -> np.ndarray[Any, Any]:
    """The texts learned from as rows, [texts, BUCKETS]."""
    rows = np.zeros((len(ngrams.rows), BUCKETS), np.float32)
    for out, row in zip(rows, ngrams.rows, strict=True):
        buckets, values = row[part]
        out[buckets] = values
    return rows


def test_each_part_is_a_unit_vector_in_its_own_block() -> None:
    ngrams = Ngrams(TEXTS)
    for part in range(PARTS):
        rows = dense(ngrams, part)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    whole, first, last = (dense(ngrams, part) for part in range(PARTS))
    assert last[0] @ last[1] > first[0] @ first[1] + 0.2
    assert np.array_equal(whole[1], last[1])


def test_a_text_gets_the_features_that_it_had_in_training() -> None:
    ngrams = Ngrams(TEXTS)
    for part, (buckets, values) in enumerate(ngrams(TEXTS[0])):
        assert np.allclose(dense(ngrams, part)[0, buckets], values)


def test_texts_are_compared_part_by_part() -> None:
    ngrams = Ngrams([*TEXTS, "", "?!", *(f"Bee {i} dances for {i % 7} ants." for i in range(60))])
    parts = [dense(ngrams, part) for part in range(PARTS)]
    assert np.allclose(ngrams.gram(), sum(rows @ rows.T for rows in parts), atol=1e-5)


def test_texts_without_words_have_no_length() -> None:
    assert all(not len(values) or np.isfinite(values).all() for _, values in Ngrams(TEXTS)("?! 😀"))


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "background.txt"
    path.write_text("# talk\nhello\n")
    first = file_digest(path)
    assert file_digest(path) == first
    path.write_text("# talk\nhello you\n")
    assert file_digest(path) != first
