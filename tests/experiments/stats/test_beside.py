"""Pairs of answers, by unit."""

from __future__ import annotations

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.experiments.stats import paired
from router.experiments.stats.sequences import one_arm


def test_pairs():
    found = paired(40, 10, 50, units=50, share_sum=40.0)
    assert found.share == 0.8
    assert 0.5 < found.low < 0.8 < found.high < 1
    assert found.p < 0.001
    assert paired(0, 0, 9, units=0, share_sum=0.0).p == 1
    assert paired(0, 0, 9, units=0, share_sum=0.0).share == 0.5
    for wrong in ((-1, 2, 0, 1, 0.0), (1, 1, 0, 3, 1.0), (5, 5, 0, 2, 2.5)):
        with pytest.raises(InvalidRequest, match="pairs"):
            paired(*wrong[:3], units=wrong[3], share_sum=wrong[4])


def test_one_unit_counts_once_however_much_it_asks():
    many, few = (paired(90, 10, units=units, share_sum=0.9 * units) for units in (10, 100))
    assert many.p > 0.05 > few.p
    assert many.high - many.low > few.high - few.low


def test_equal_pairs_are_called_different_in_at_most_five_percent():
    wins = (np.random.default_rng(1).random((400, 200)) < 0.5).cumsum(axis=1)
    evidence = one_arm(wins, np.arange(1, 201) - wins, 0.5)
    assert (evidence >= np.log(20)).any(axis=1).mean() <= 0.05


def test_users_who_ask_a_lot_and_have_tastes_of_their_own_show_nothing():
    """200 users of Zipf volume whose chance to prefer the shadow is Beta(2, 2): counted by request 38 % of
    such A/A runs were called."""
    rng, wrong, runs = np.random.default_rng(5), 0, 200
    for _ in range(runs):
        user = np.minimum(rng.zipf(1.6, 2000), 200) - 1
        won = rng.random(2000) < rng.beta(2, 2, 200)[user]
        asked = np.array([np.bincount(user[:n], minlength=200) for n in range(50, 2001, 50)])
        wins = np.array([np.bincount(user[:n], won[:n], 200) for n in range(50, 2001, 50)])
        units = (asked > 0).sum(axis=1)
        shares = np.divide(wins, asked, out=np.zeros_like(wins), where=asked > 0).sum(axis=1)
        wrong += bool((one_arm(shares, units - shares, 0.5) >= np.log(20)).any())
    assert wrong / runs <= 0.05
