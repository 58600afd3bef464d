"""The network for adapters with few examples, on made-up vectors; recipes/routing measures how good it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from router.classifiers.fewshot import MOST, FewShot

SIZE, EXAMPLES = 384, 8
NO_WORDS = [(np.array([0]), np.array([0.0]))] * 3
RANDOM = np.random.default_rng(7)
Array = np.ndarray[Any, Any]


def near(directions: Array, spread: float = 0.7) -> Array:
    """Vectors of three equal parts, each of unit length, near these directions."""
    rows = directions + spread * RANDOM.normal(size=directions.shape) / SIZE**0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.tile(rows, 3).astype(np.float32)


def directions(count: int) -> Array:
    rows = RANDOM.normal(size=(count, SIZE))
    made: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def shots(topics: Array, refused: tuple[int, ...] = ()) -> FewShot:
    """Eight examples for each direction, and a negative one for each of `refused`, in direction 0."""
    vectors = near(np.repeat(topics, EXAMPLES, axis=0))
    return FewShot.of(
        vectors,
        np.arange(1, len(topics) + 1) * EXAMPLES,
        np.zeros(len(topics), bool),
        near(directions(60)),
        [NO_WORDS] * len(vectors),
        near(topics[:1].repeat(len(refused), axis=0), 0.0),
        np.array(refused, int),
    )


def chances(known: FewShot, asked: Array) -> Array:
    return known.chances(asked, [NO_WORDS] * len(asked))


def test_a_request_goes_to_the_adapter_with_such_examples_and_a_strange_one_to_none() -> None:
    topics = directions(4)
    known = shots(topics)
    assert chances(known, near(topics)).argmax(1).tolist() == [0, 1, 2, 3]
    assert set(chances(known, near(directions(5))).argmax(1)) == {4}


def test_of_many_adapters_only_the_nearest_have_a_chance() -> None:
    topics = directions(40)
    found = chances(shots(topics), near(topics[:5]))
    assert found.argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert (np.count_nonzero(found[:, :-1], axis=1) <= MOST).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_a_single_adapter_is_told_from_strange_requests() -> None:
    topic = directions(1)
    found = chances(shots(topic), np.concatenate([near(topic), near(directions(3))]))
    assert found.argmax(1).tolist() == [0, 1, 1, 1]


def test_a_negative_example_lowers_the_chance_of_its_adapter_only() -> None:
    topics = directions(3)
    asked = near(topics[:1], 0.3)
    with_it, without = chances(shots(topics, (0,)), asked)[0], chances(shots(topics), asked)[0]
    assert with_it[0] < without[0]
    assert with_it[-1] > without[-1]
