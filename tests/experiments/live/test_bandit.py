"""Weights of a bandit: a floor, a sum, the same for the same seed, and less regret than equal shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.experiments.live.bandit import best_chances, seed_of, weights
from router.experiments.stats import Kind, Metric, Moments

CLICK = Metric("click", Kind.PROPORTION)
MINUTES = Metric("minutes", Kind.MEAN, higher_is_better=False)
EDITS = Metric("edits", Kind.RATIO)
COUNTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=2, max_size=5)


def rates(*arms: tuple[int, int]) -> dict[str, Moments]:
    """Arms by successes and failures."""
    return {f"arm{i}": Moments(s + f, (float(s),), (float(s),)) for i, (s, f) in enumerate(arms)}


def values(*arms: list[float]) -> dict[str, Moments]:
    return {f"arm{i}": Moments.of(found) if found else Moments.empty(1) for i, found in enumerate(arms)}


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.floats(0.01, 0.2), st.text(max_size=5))
def test_weights_sum_to_one_and_respect_the_floor(counts, floor, seed):
    found = weights(CLICK, rates(*counts), floor, seed)
    assert math.fsum(found.values()) == pytest.approx(1.0, abs=1e-12)
    assert min(found.values()) >= floor - 1e-12
    assert found == weights(CLICK, rates(*counts), floor, seed)


def test_the_seed_is_of_the_epoch():
    arms = rates((30, 70), (34, 66))
    seeds = [seed_of("trial", 1, epoch) for epoch in (1, 2)] + [seed_of("trial", 2, 1)]
    found = [weights(CLICK, arms, 0.05, seed)["arm1"] for seed in seeds]
    assert len(set(found)) == 3
    assert max(found) - min(found) < 0.03  # they differ by chance alone


@pytest.mark.parametrize("floor", [0.0, -0.1, 0.51, math.nan])
def test_a_floor_that_does_not_fit_is_refused(floor):
    with pytest.raises(InvalidRequest, match="floor"):
        weights(CLICK, rates((1, 1), (1, 1)), floor, "s")


def test_chances_of_proportions_are_those_of_the_betas():
    found = best_chances(CLICK, rates((20, 80), (30, 70)), "s")
    draws = np.random.default_rng(1).beta([[21], [31]], [[81], [71]], (2, 200_000))
    assert found["arm1"] == pytest.approx((draws[1] > draws[0]).mean(), abs=0.01)
    assert sum(found.values()) == pytest.approx(1.0)


def test_less_is_better_where_the_metric_says_so():
    rng = np.random.default_rng(2)
    arms = values(list(rng.exponential(3.0, 300)), list(rng.exponential(2.0, 300)))
    assert best_chances(MINUTES, arms, "s")["arm1"] > 0.99
    assert best_chances(Metric("minutes", Kind.MEAN), arms, "s")["arm1"] < 0.01


def test_nothing_known_is_equal_and_equal_values_are_ties():
    assert best_chances(MINUTES, values([], [], []), "s") == pytest.approx(
        dict.fromkeys(["arm0", "arm1", "arm2"], 1 / 3)
    )
    assert best_chances(MINUTES, values([1.0] * 9, [1.0] * 5), "s") == pytest.approx(
        {"arm0": 0.5, "arm1": 0.5}
    )
    empty = {"arm0": Moments.empty(2), "arm1": Moments.of([1.0], [0.0])}
    assert best_chances(EDITS, empty, "s") == pytest.approx({"arm0": 0.5, "arm1": 0.5})


def test_a_young_arm_is_neither_believed_nor_given_up():
    rng = np.random.default_rng(3)
    old = list(rng.normal(1.0, 1.0, 500))
    lucky = best_chances(Metric("m", Kind.MEAN), values(old, [3.0]), "s")["arm1"]
    unlucky = best_chances(Metric("m", Kind.MEAN), values(old, [-1.0]), "s")["arm1"]
    unseen = best_chances(Metric("m", Kind.MEAN), values(old, []), "s")["arm1"]
    assert 0.1 < unlucky < unseen < lucky < 0.9
    assert unseen == pytest.approx(0.5, abs=0.02)


def test_ratios_by_their_linearised_values():
    rng = np.random.default_rng(4)
    asked = rng.integers(1, 6, (2, 400)).astype(float)
    edits = rng.poisson(asked * np.array([[0.5], [0.8]])).astype(float)
    arms = {f"arm{i}": Moments.of(edits[i], asked[i]) for i in range(2)}
    assert best_chances(EDITS, arms, "s")["arm1"] > 0.99


def played(adaptive: bool, seed: int) -> float:
    """Successes lost against the best arm: 20 epochs of 100 units on arms of 0.10, 0.12 and 0.20."""
    truth, rng = np.array([0.10, 0.12, 0.20]), np.random.default_rng(seed)
    shares, wins, units, lost = np.full(3, 1 / 3), np.zeros(3), np.zeros(3), 0.0
    for epoch in range(20):
        shown = rng.multinomial(100, shares)
        wins += rng.binomial(shown, truth)
        units += shown
        lost += float(shown @ (truth.max() - truth))
        if adaptive:
            arms = rates(*((int(w), int(n - w)) for w, n in zip(wins, units, strict=True)))
            shares = np.array(list(weights(CLICK, arms, 0.05, seed_of("sim", seed, epoch)).values()))
    return lost


def test_less_is_lost_than_with_equal_shares():
    bandit, uniform = (np.mean([played(adaptive, seed) for seed in range(15)]) for adaptive in (True, False))
    assert uniform == pytest.approx(120, rel=0.05)
    assert bandit < 0.55 * uniform
