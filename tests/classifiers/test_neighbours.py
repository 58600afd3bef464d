"""Nearest vectors by owner, against all of them compared in full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classifiers.nearest import BLOCK, COARSE, Array, Neighbours, principal, quantise

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
