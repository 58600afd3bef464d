"""Nearest vectors by owner, and one adapter against background requests, each against a slow oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classifiers.nearest import (
    BIAS,
    BLOCK,
    COARSE,
    PENALTY,
    SHARE,
    Array,
    BackgroundNegatives,
    LinearScorer,
    Neighbours,
    principal,
    quantise,
)

SIZE = 96


def units(count: int, seed: int = 0) -> Array:
    rows = np.random.default_rng(seed).standard_normal((count, SIZE)).astype(np.float32)
    found: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


@pytest.fixture(scope="module")
def basis() -> Array:
    return principal(units(300, seed=9))


def test_the_nearest_of_many_is_found(basis: Array) -> None:
    rows = units(BLOCK + 500)
    near = Neighbours(basis)
    for i in range(0, len(rows), 2):
        near.put(f"a{i}", rows[i : i + 2])
    asked = units(1, seed=5)[0] * 0.1 + rows[4000]
    (first, *_) = near.near(asked / np.linalg.norm(asked), 4)
    assert first.owner == "a4000"
    assert first.similarity == pytest.approx(float(rows[4000] @ asked / np.linalg.norm(asked)), abs=0.01)
    assert len(near) == len(rows)


def test_owners_come_change_and_go(basis: Array) -> None:
    one, two, three = units(3)
    near = Neighbours(basis)
    assert near.near(one, 3) == []
    near.put("a", one[None])
    near.put("b", two[None])
    near.put("a", three[None])
    assert near.near(three, 1)[0].owner == "a"
    assert near.near(one, 2)[0].similarity < 0.9
    near.drop("a")
    near.drop("never there")
    assert [found.owner for found in near.near(three, 3)] == ["b"]
    assert len(near) == 1


def test_what_speaks_against_an_owner_is_told(basis: Array) -> None:
    one, two, _ = units(3)
    near = Neighbours(basis)
    near.put("a", one[None], against=two[None])
    (found,) = near.near(two, 1)
    assert found.against > 0.98 > found.similarity
    (found,) = near.near(one, 1)
    assert found.similarity > 0.98 > found.against


def test_places_are_used_again(basis: Array) -> None:
    near = Neighbours(basis)
    rows = units(64)
    for turn in range(3 * BLOCK // 64):
        near.put("a", rows)
        near.drop("a" if turn % 2 else "b")
    assert len(near._blocks) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=20), st.integers(0, 99))
def test_it_is_the_same_as_comparing_all(changes: list[tuple[str, int]], seed: int) -> None:
    near, rows = Neighbours(principal(units(100, seed=1))), units(5, seed=seed)
    there: dict[str, Array] = {}
    for owner, count in changes:
        if count:
            near.put(owner, rows[:count])
            there[owner] = rows[:count]
        else:
            near.drop(owner)
            there.pop(owner, None)
    asked = units(1, seed=seed + 1)[0]
    found = {one.owner: one.similarity for one in near.near(asked, 9)}
    assert found.keys() == there.keys()
    for owner, own in there.items():
        assert found[owner] == pytest.approx(float((own @ asked).max()), abs=0.01)


def test_a_basis_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="63 directions, not 64"):
        Neighbours(np.eye(63, SIZE, dtype=np.float32))


def test_few_rows_still_make_a_basis() -> None:
    basis = principal(units(5))
    assert basis.shape == (COARSE, SIZE)
    assert basis @ basis.T == pytest.approx(np.eye(COARSE), abs=1e-4)


def test_quantised_rows_are_close_and_zeros_stay() -> None:
    rows = np.concatenate([units(10), np.zeros((1, SIZE), np.float32)])
    fine, scale = quantise(rows)
    assert np.abs(fine * scale[:, None] - rows).max() < 0.005
    assert not fine[-1].any()


# -- an adapter against background requests


def towards(count: int, seed: int, direction: int) -> Array:
    """Unit vectors that share a direction."""
    rows = units(count, seed) * SIZE**0.5
    rows[:, direction] += 9
    found: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


NONE = np.zeros((0, SIZE), np.float32)


def slow_score(own: Array, strange: Array, asked: Array) -> float:
    """Weighted ridge regression, solved as a whole."""
    rows = np.concatenate([own, strange]).astype(np.float64)
    target = np.concatenate([np.ones(len(own)), -np.ones(len(strange))])
    penalty = np.concatenate(
        [np.full(len(own), PENALTY * OWN / (SHARE * STRANGE)), np.full(len(strange), PENALTY)]
    )
    dual = np.linalg.solve(rows @ rows.T + BIAS + np.diag(penalty), target)
    return float((asked @ rows.T + BIAS) @ dual)


OWN, STRANGE = 8, 60


@pytest.fixture(scope="module")
def strange() -> Array:
    return units(STRANGE, seed=1)


def test_the_score_is_that_of_ridge_regression(strange: Array) -> None:
    own, asked = towards(OWN, seed=2, direction=0), units(1, seed=3)[0]
    verdict = BackgroundNegatives(strange).learn(own, NONE)
    assert verdict.above(asked) + verdict.level == pytest.approx(slow_score(own, strange, asked), abs=0.01)


def test_left_out_is_as_though_it_had_not_been_there(strange: Array) -> None:
    """The level of texts apart is half-way between the last stranger and nine of ten of their own."""
    own = towards(OWN, seed=2, direction=0)
    verdict = BackgroundNegatives(strange).learn(own, NONE)
    left_out = [slow_score(np.delete(own, i, axis=0), strange, own[i]) for i in range(OWN)]
    away = [slow_score(own, np.delete(strange, i, axis=0), strange[i]) for i in range(STRANGE)]
    expected = (max(away) + float(np.quantile(left_out, 0.1))) / 2
    assert verdict.level == pytest.approx(expected, abs=0.02)


def test_a_topic_of_its_own_is_recognised_and_strangers_are_not(strange: Array) -> None:
    verdict = BackgroundNegatives(strange).learn(towards(OWN, seed=2, direction=0), NONE)
    assert verdict.recognised == 1.0
    assert verdict.taken == 0.0
    assert sum(verdict.above(row) > 0 for row in towards(20, seed=4, direction=0)) >= 16
    assert sum(verdict.above(row) > 0 for row in units(200, seed=5)) <= 10


def test_examples_like_everything_else_take_few_strangers(strange: Array) -> None:
    verdict = BackgroundNegatives(strange).learn(units(OWN, seed=6), NONE)
    assert verdict.recognised < 0.5
    assert verdict.taken <= 0.05


def test_a_negative_example_pulls_down(strange: Array) -> None:
    own, against = towards(OWN, seed=2, direction=0), towards(4, seed=7, direction=0)
    strangers = BackgroundNegatives(strange)
    before, after = strangers.learn(own, NONE), strangers.learn(own, against)
    assert all(after.above(row) < before.above(row) for row in against)


def test_it_survives_being_kept(strange: Array) -> None:
    verdict = BackgroundNegatives(strange).learn(towards(OWN, seed=2, direction=0), NONE)
    again = LinearScorer.of(verdict.packed().astype(np.float32))
    asked = units(1, seed=3)[0]
    assert again.above(asked) == pytest.approx(verdict.above(asked), abs=0.01)
    assert again.recognised == pytest.approx(verdict.recognised, abs=0.001)
