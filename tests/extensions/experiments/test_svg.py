"""What a report's charts draw."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from router.extensions.experiments.model import ArmSpec
from router.extensions.experiments.report.model import PlotPoint
from router.extensions.experiments.svg import DAY, Bar, effect_chart, range_bars, ticks, times
from tests.extensions.experiments.report.sums import REPORT, STARTED, running

HOUR = 3600.0
HEIGHT = 300.0
WINDOW = REPORT.experiment.spec.window


@pytest.mark.parametrize(("low", "high"), [(-0.013, 0.061), (0.0, 1.0), (-3e5, 2e6), (0.4999, 0.5001)])
def test_ticks_are_few_round_and_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert steps == {1.0}


@pytest.mark.parametrize(
    ("length", "label"), [(20, "00:00:10"), (7200, "00:30"), (2 * DAY, "01 Jan 12:00"), (40 * DAY, "08 Jan")]
)
def test_times_are_labelled_for_their_span(length, label):
    found = times(0.0, length)
    assert 2 <= len(found) <= 7
    assert label in [text for _, text in found]


def points(many, low=-0.1, high=0.3, arm="new"):
    """One each hour."""
    return tuple(PlotPoint(STARTED + HOUR * (i + 1), arm, 0.1, low, high) for i in range(many))


def with_points(found, report=REPORT):
    return replace(report, points=found, time=STARTED + 400 * HOUR + WINDOW)


def ys(chart):
    return [float(y) for line in re.findall(r'points="([^"]*)"', chart) for y in re.findall(r",(\S+)", line)]


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-0.1, math.inf), (math.nan, math.nan)])
def test_infinite_ends_are_cut_at_the_frame(bounds):
    late = tuple(replace(p, time=p.time + HOUR) for p in points(4))
    chart = effect_chart(with_points((*points(1, *bounds), *late)))
    assert 'class="band c1"' in chart
    assert all(-HEIGHT <= y <= 2 * HEIGHT for y in ys(chart))
    assert not re.search("nan|inf", chart)


def test_nothing_is_drawn_of_one_point_or_none():
    for made in ((), points(1)):
        assert effect_chart(with_points(made)) == ""


def test_effects_of_shares_are_in_points():
    assert 'text-anchor="end">+10</text>' in effect_chart(with_points(points(3)))


def test_names_are_escaped_and_do_not_overlap():
    names = ["<new>", "b", "c"]
    arms = (*REPORT.experiment.spec.arms, *(ArmSpec(name, 0.1) for name in names))
    report = replace(REPORT, experiment=running(replace(REPORT.experiment.spec, arms=arms)))
    drawn = tuple(point for name in names for point in points(2, arm=name))
    chart = effect_chart(with_points(drawn, report))
    assert "&lt;new&gt;" in chart
    assert "<new>" not in chart
    heights = sorted(float(y) for y in re.findall(r'class="name c\d" x="[^"]+" y="([^"]+)"', chart))
    assert len(heights) == 3
    assert all(b - a >= 15 for a, b in pairwise(heights))


def places(bar):
    """Left end, point, right end, zero, limit."""
    patterns = (r'<rect x="([^"]+)"', r'cx="([^"]+)"', r'y="7" width="([^"]+)"', 'zero" d="M([^ ]+)')
    left, at, wide, zero = (float(re.search(one, bar)[1]) for one in patterns)
    limit = re.search(r'beyond" width="([^"]+)"', bar)
    return left, at, left + wide, zero, float(limit[1]) if limit else None


def test_what_is_better_lies_to_the_right_and_the_margin_to_the_left():
    first, rail = range_bars(
        [Bar((7.0, 2.0, 12.0), None, "ok", True), Bar((2.0, 1.0, 3.0), -3.0, "ok", False)]
    )
    left, at, right, zero, _ = places(first)
    assert zero < left < at < right < 200
    left, _, right, zero, limit = places(rail)
    assert 0 < limit < zero < left < right
    assert 'class="range ok"' in rail


def test_a_range_off_the_axis_is_cut_and_the_metric_that_decides_is_no_dot():
    first, wide = range_bars(
        [Bar((7.0, 2.0, 12.0), None, "", True), Bar((400.0, -900.0, math.inf), None, "", False)]
    )
    left, at, right, *_ = places(wide)
    assert (left, at, right) == (0.0, 200.0, 200.0)
    left, _, right, *_ = places(first)
    assert right - left > 20


def test_without_a_range_there_is_no_bar():
    assert range_bars([Bar(None, None, "", True)]) == ("",)
