"""N-gram features of the parts of a request."""

from __future__ import annotations

import numpy as np

from router.classifiers.regression import BUCKETS, PARTS, Ngrams

TEXTS = ["Sum it up. Bees dance in the hive.", "Bees dance", "Ants march"]


def test_each_part_is_a_unit_vector_in_its_own_block() -> None:
    ngrams = Ngrams(TEXTS)
    for part in range(PARTS):
        rows = ngrams.matrix(part)
        assert rows.shape == (len(TEXTS), BUCKETS)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    whole, first, last = (ngrams.matrix(part) for part in range(PARTS))
    assert last[0] @ last[1] > first[0] @ first[1] + 0.2
    assert np.array_equal(whole[1], last[1])


def test_a_text_gets_the_features_that_it_had_in_training() -> None:
    ngrams = Ngrams(TEXTS)
    for part, (buckets, values) in enumerate(ngrams(TEXTS[0])):
        assert np.allclose(ngrams.matrix(part)[0, buckets], values)


def test_texts_without_words_have_no_length() -> None:
    assert all(not len(values) or np.isfinite(values).all() for _, values in Ngrams(TEXTS)("?! 😀"))
