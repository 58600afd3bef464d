"""The level from which a fit routes, over what hypothesis can think of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classifiers.gate import ERROR, LEVELS, STRANGERS, level_of, shifted

TEXTS = st.lists(
    st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), unique_by=lambda one: one[0], max_size=200
)


def arrays(texts: Any) -> Any:
    """Chances, whether the best adapter is the text's own, and whether the text is an example."""
    chances, right, own = zip(*texts, strict=True) if texts else ((), (), ())
    return np.array(chances, float), np.array(right, bool), np.array(own, bool)


def of_examples(texts: Any) -> tuple[float, Any, Any]:
    """The level by those texts as examples."""
    chances, right, _ = arrays(texts)
    own = np.ones(len(chances), bool)
    return level_of(chances, right, own, ~own), chances, right


@given(TEXTS)
def test_few_examples_that_reach_the_level_go_to_another_adapter(texts: Any) -> None:
    level, chances, right = of_examples(texts)
    wrong = ~right[chances >= level]
    if len(wrong) and LEVELS[0] < level < LEVELS[1]:  # there is no higher one
        assert wrong.mean() <= ERROR


@given(TEXTS)
def test_a_lower_level_would_let_too_many_go_wrong(texts: Any) -> None:
    level, chances, right = of_examples(texts)
    for lower in chances[chances < level]:
        if LEVELS[0] < level < LEVELS[1]:
            assert (~right[chances >= lower]).sum() + 0.5 > ERROR * (chances >= lower).sum()


@given(TEXTS)
def test_few_general_requests_reach_the_level(texts: Any) -> None:
    chances, right, own = arrays(texts)
    level = level_of(chances, right, own, ~own)
    if (~own).any() and level < LEVELS[1]:
        reached = (chances[~own] >= level).sum()
        assert reached <= STRANGERS * (~own).sum() + 1


@given(TEXTS)
def test_the_level_is_a_chance_whatever_there_is(texts: Any) -> None:
    chances, right, own = arrays(texts)
    assert LEVELS[0] <= level_of(chances, right, own, ~own) <= LEVELS[1]


def test_examples_that_are_never_right_reach_no_level() -> None:
    assert of_examples([(i / 100, False, True) for i in range(90)])[0] == LEVELS[1]


@given(st.lists(st.floats(0, 1, width=32), min_size=1), st.floats(*LEVELS))
def test_the_level_becomes_one_half_and_the_order_stays(chances: list[float], level: float) -> None:
    assert shifted(np.array([0.0, level, 1.0]), level) == pytest.approx([0, 0.5, 1], abs=1e-6)
    found = shifted(np.sort(np.array(chances, float)), level)
    assert (np.diff(found) >= -1e-12).all()
    assert ((found >= 0) & (found <= 1)).all()
