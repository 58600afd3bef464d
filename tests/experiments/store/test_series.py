"""Stretches of time: without gaps, short at first, few in all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.experiments.model import Mode
from router.experiments.stats import Moments
from router.experiments.store.series import (
    FIRST_STRETCHES,
    first_width,
    powers,
    stretch_number,
    stretch_span,
    stretches_of,
)
from tests.experiments.store.helpers import experiment


@pytest.mark.parametrize(("window", "width"), [(0, 1), (24, 1), (2400, 100), (86_400, 3600), (1e7, 3600)])
def test_the_first_ones(window, width):
    assert first_width(window) == width


@given(st.floats(0, 1e9), st.sampled_from([1.0, 12.5, 3600.0]))
def test_every_time_is_in_its_stretch(elapsed, width):
    begin, seconds = stretch_span(stretch_number(elapsed, width), width)
    assert begin <= elapsed < begin + seconds
    assert seconds == width or seconds <= elapsed * 2 / FIRST_STRETCHES * 1.0001


@given(st.integers(0, 20 * FIRST_STRETCHES), st.sampled_from([1.0, 3600.0]))
def test_they_follow_each_other(stretch, width):
    begin, seconds = stretch_span(stretch, width)
    assert stretch_span(stretch + 1, width)[0] == begin + seconds
    assert stretch_number(begin, width) == stretch


def test_a_bandits_are_its_epochs():
    spec = replace(experiment().spec, mode=Mode.BANDIT, epoch=60.0)
    found = stretches_of(spec)
    assert [found.number(elapsed) for elapsed in (-5.0, 59.9, 60.0, 60_000.0)] == [0, 0, 1, 1000]
    assert found.span(1000) == (60_000.0, 60.0)
    assert stretches_of(replace(spec, mode=Mode.SPLIT)).span(1000) != (100_000.0, 100.0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4))
def test_powers_are_in_the_order_of_moments(row):
    found = Moments.of(*([value] for value in row))
    assert powers(tuple(row)) == pytest.approx((*found.sums, *found.products, *found.cubes))


def test_before_the_phase_is_the_first_one():
    assert stretch_number(-5.0, 1.0) == 0


def test_a_year_of_seconds_is_some_thousand_of_them():
    assert stretch_number(365 * 86_400, 1.0) < 6000
