"""The paired difference against known results and its promised errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from router.paired import _t_quantile, difference


def apart(better: int, worse: int, same: int):
    new = [1.0] * better + [0.0] * worse + [1.0] * same
    old = [0.0] * better + [1.0] * worse + [1.0] * same
    return difference(new, old, range(len(new)))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 0), (12, 4), (40, 40), (300, 220)])
def test_single_right_or_wrong_answers_are_mcnemars_exact_test(better, worse):
    found = apart(better, worse, 50)
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert found.exact
    assert found.p == pytest.approx(expected)
    assert (found.better, found.worse) == (better, worse)


def test_equal_answers_leave_room_for_a_small_difference():
    found = apart(0, 0, 100)
    assert found.mean == 0
    assert -0.04 < found.low < 0 < found.high < 0.04


def test_copies_of_a_prompt_in_one_conversation_prove_nothing_more():
    new, old = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    once = difference(new, old, range(6))
    many = difference(new * 10, old * 10, list(range(6)) * 10)
    assert many.p == pytest.approx(once.p)
    assert many.high - many.low > 0.5 * (once.high - once.low)


def test_scores_of_any_kind_have_a_drawn_p():
    random = np.random.default_rng(1)
    old = random.random(60)
    found = difference(np.clip(old + 0.2 * random.random(60), 0, 1), old, range(60))
    assert not found.exact
    assert found.p == pytest.approx(1 / 20_001)
    assert found.low > 0


@pytest.mark.parametrize(
    ("rows", "continuous", "runs"), [(20, False, 300), (200, False, 300), (20, True, 150)]
)
def test_no_difference_is_found_in_one_of_twenty_and_the_interval_holds_it(rows, continuous, runs):
    random, found, outside = np.random.default_rng(2), 0, 0
    for _ in range(runs):
        if continuous:
            common = random.random(rows)
            new, old = (np.clip(common + random.normal(0, 0.2, rows), 0, 1) for _ in range(2))
            new, old = new.round(2) * 0.999, old.round(2) * 0.999  # off the grid
        else:
            common = random.random(rows)
            new, old = ((random.random(rows) < common).astype(float) for _ in range(2))
        result = difference(new, old, range(rows))
        found += result.found
        outside += not result.low <= 0 <= result.high
    assert found / runs < 0.05 + 0.03
    assert outside / runs < 0.05 + 0.03


def test_five_points_on_five_hundred_rows_are_found():
    random, found = np.random.default_rng(3), 0
    for _ in range(200):
        old = (random.random(500) < 0.8).astype(float)
        new = np.where(random.random(500) < 0.06, 0.0, old)  # loses 6 % of its right answers
        result = difference(new, old, range(500))
        found += result.found and result.mean < 0
    assert found / 200 > 0.95


def test_many_groups_have_the_p_that_draws_would_give():
    random = np.random.default_rng(4)
    old = random.random(1500)
    new = old + 0.2 * random.standard_normal(1500) + 0.01
    moving = np.abs(new - old)
    signs = random.integers(0, 2, (10_000, 1500)) * 2.0 - 1
    drawn = (np.abs(signs @ moving) >= abs((new - old).sum())).mean()
    found = difference(new, old, range(1500))
    assert not found.exact
    assert found.p == pytest.approx(drawn, abs=0.01)


@pytest.mark.parametrize("freedom", [5, 10, 21, 500])
def test_quantile_of_t(freedom):
    assert _t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.002)
