from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.extensions.training.evaluation.scoring import MeanScorer, resample

answers = st.lists(st.booleans(), min_size=2, max_size=30)


@pytest.mark.slow
@given(answers)
def test_interval_holds_the_value(values: list[bool]) -> None:
    estimate = resample(MeanScorer(values), len(values), samples=200).estimate()
    assert estimate.value == pytest.approx(np.mean(values))
    assert 0 <= estimate.low <= estimate.value + 1e-12
    assert estimate.value - 1e-12 <= estimate.high <= 1


def test_interval_of_a_proportion_is_about_the_normal_one() -> None:
    values = [1.0] * 60 + [0.0] * 40
    estimate = resample(MeanScorer(values), 100).estimate()
    half = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert estimate.low == pytest.approx(0.6 - half, abs=0.015)
    assert estimate.high == pytest.approx(0.6 + half, abs=0.015)


@given(answers)
def test_differences_are_paired(values: list[bool]) -> None:
    ours = resample(MeanScorer([value + 0.25 for value in values]), len(values), samples=100)
    theirs = resample(MeanScorer(values), len(values), samples=100)
    gain = ours.minus(theirs)
    assert [gain.low, gain.high] == pytest.approx([0.25, 0.25])


def test_same_seed_same_interval() -> None:
    one, other = (resample(MeanScorer([0, 1, 1, 0, 1]), 5, samples=50) for _ in range(2))
    assert (one.draws == other.draws).all()


def test_mean() -> None:
    assert MeanScorer([1, 0, 0, 1]).score(np.array([0, 0, 1])) == pytest.approx(2 / 3)
