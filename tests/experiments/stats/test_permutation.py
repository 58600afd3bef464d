"""Sign flips: p against enumeration by hand, intervals that invert it, and how often they are wrong."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.experiments.stats.permutation import effect_for, pairs_for, pairs_needed, relabelled, sign_flips

values = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=8)


@given(values)
def test_p_counts_all_ways_to_flip(found):
    sums = [
        sum(s * d for s, d in zip(signs, found, strict=True)) for signs in product((1, -1), repeat=len(found))
    ]
    seen = sum(found)
    shift = sign_flips(found)
    assert shift.above == pytest.approx(sum(s >= seen - 1e-9 for s in sums) / len(sums))
    assert shift.below == pytest.approx(sum(s <= seen + 1e-9 for s in sums) / len(sums))


@given(st.lists(st.floats(-10, 10), min_size=7, max_size=9))
def test_an_interval_has_what_the_test_does_not_refuse(found):
    shift = sign_flips(found, 0.05)
    width = max(1e-6, 0.01 * (shift.high - shift.low))
    for inside in (shift.low + width, shift.high - width):
        if shift.low < inside < shift.high:
            assert sign_flips([d - inside for d in found]).p > 0.05
    for outside in (shift.low - width, shift.high + width):
        assert sign_flips([d - outside for d in found]).p <= 0.05


def test_few_pairs_show_nothing_and_none_are_no_error():
    assert pairs_needed(0.05) == 6
    assert math.isinf(sign_flips([1.0] * 5).high)
    assert math.isfinite(sign_flips([1.0] * 6).high)
    assert (sign_flips([]).p, sign_flips([0.0, 0.0]).p) == (1.0, 1.0)


def test_many_pairs_are_drawn_and_wrong_no_more_often_than_promised():
    rng = np.random.default_rng(3)
    rows = rng.standard_t(2, (400, 20))  # heavy tails
    found = [sign_flips(row) for row in rows]
    assert not found[0].exact
    assert sum(shift.p <= 0.05 for shift in found) <= 400 * 0.05 + 2 * math.sqrt(400 * 0.05 * 0.95)
    assert sum(shift.low <= 0 <= shift.high for shift in found) >= 400 * 0.95 - 9


def test_so_many_pairs_as_planned_show_the_effect():
    pairs = pairs_for(0.7, 1.0, 0.05, 0.8)
    assert effect_for(pairs, 1.0, 0.05, 0.8) <= 0.7 < effect_for(pairs - 1, 1.0, 0.05, 0.8)
    rng = np.random.default_rng(4)
    shown = [sign_flips(row).p <= 0.05 for row in rng.normal(0.7, 1.0, (400, pairs))]
    assert 0.75 <= np.mean(shown) <= 0.88
    assert pairs_for(1.0, 0.0, 0.05, 0.8) == 6


@given(
    st.lists(st.integers(-9, 9), min_size=2, max_size=4), st.lists(st.integers(-9, 9), min_size=2, max_size=4)
)
def test_p_of_groups_counts_all_ways_to_divide(control, treatment):
    values, treated = [*control, *treatment], len(treatment)
    seen = np.mean(treatment) - np.mean(control)
    ways = []
    for places in combinations(range(len(values)), treated):
        chosen = [values[i] for i in places]
        ways.append(np.mean(chosen) - (sum(values) - sum(chosen)) / len(control))
    shift = relabelled(control, treatment)
    assert shift.above == pytest.approx(np.mean([way >= seen - 1e-9 for way in ways]))
    assert shift.below == pytest.approx(np.mean([way <= seen + 1e-9 for way in ways]))


def test_an_interval_of_groups_has_what_the_test_does_not_refuse():
    rng = np.random.default_rng(8)
    for sizes in ((5, 5), (4, 9), (30, 31)):
        control, treatment = rng.lognormal(0, 1, sizes[0]), rng.lognormal(0.3, 1, sizes[1])
        shift = relabelled(control, treatment)
        width = 1e-3 * (shift.high - shift.low)
        assert relabelled(control, treatment - shift.low - width).p > 0.05
        assert relabelled(control, treatment - shift.high + width).p > 0.05
        assert relabelled(control, treatment - shift.low + width).p <= 0.05
        assert relabelled(control, treatment - shift.high - width).p <= 0.05
    assert relabelled([], [1.0]).p == 1.0


def test_five_against_five_can_show_a_difference_and_equal_groups_do_not():
    rng = np.random.default_rng(9)
    assert relabelled([0.0] * 5, [1.0] * 5).p == pytest.approx(2 / 252)
    rows = rng.lognormal(0, 2, (400, 10))
    assert sum(relabelled(row[:5], row[5:]).p <= 0.05 for row in rows) <= 400 * 0.05 + 9
