"""What a report's charts draw."""

import math
import re
from dataclasses import replace

import pytest

from router.experiments.charts import (
    lift_chart,
    new_units_chart,
    relative_points,
    units_chart,
)
from router.experiments.model import Kind, MetricSpec
from router.experiments.report.model import PlotPoint
from tests.experiments.report.sums import REPORT, SPEC, STARTED, running

HOUR = 3600.0
HEIGHT = 300.0
WINDOW = REPORT.experiment.spec.window


def points(units, low=-0.1, high=0.3, arms=("control", "new")):
    """One each hour, with so many units until then."""
    return tuple(
        PlotPoint(STARTED + HOUR * (i + 1), arm, 0.1, low, high, n, 0.5, 0.4, 0.6)
        for i, n in enumerate(units)
        for arm in arms
    )


def with_points(found):
    return replace(REPORT, points=found, time=STARTED + 400 * HOUR + WINDOW)


def ticks(chart):
    return re.findall(r'text-anchor="end">\n?([^<]*)</text>', chart)


def ys(chart):
    return [float(y) for line in re.findall(r'points="([^"]*)"', chart) for y in re.findall(r",(\S+)", line)]


def test_a_lift_is_relative_where_that_is_known():
    known = {"relative": 0.2, "relative_low": -0.1, "relative_high": 0.5}
    early, *rest = points([10, 20, 30])
    report = with_points((early, *(replace(p, **known) for p in rest)))
    assert relative_points(report, "new") == []  # the difference of shares is in points
    assert "+10" in ticks(lift_chart(report, "new", "lift"))
    mean = replace(SPEC, primary=MetricSpec("tokens", Kind.MEAN))
    of_mean = replace(report, experiment=running(mean))
    assert {"0", "+20 %", "+40 %"} <= set(ticks(lift_chart(of_mean, "new", "lift")))
    assert [round(100 * p.relative) for p in relative_points(of_mean, "new")][-2:] == [20, 20]
    plain = replace(of_mean, points=points([10, 20, 30]))
    assert "+0.1" in ticks(lift_chart(plain, "new", "lift"))


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-0.1, math.inf), (math.nan, math.nan)])
def test_infinite_ends_are_cut_at_the_frame(bounds):
    made = points([10, 20, 30, 40])
    report = with_points((*points([5], *bounds), *(replace(p, time=p.time + HOUR) for p in made)))
    chart = lift_chart(report, "new", "lift")
    assert 'class="band c1"' in chart
    assert all(-HEIGHT <= y <= 2 * HEIGHT for y in ys(chart))
    assert not re.search("nan|inf", chart)


def test_nothing_is_drawn_of_one_point_or_none():
    for made in ((), points([10])):
        report = with_points(made)
        assert lift_chart(report, "new", "lift") == ""
        assert units_chart(report) == ""
        assert new_units_chart(report) == ("", 0.0)


def test_new_units_are_those_between_two_ends():
    chart, seconds = new_units_chart(with_points(points([100, 100, 300, 300])))
    assert seconds == 900.0
    chart, seconds = new_units_chart(with_points(points([100 * (i + 1) for i in range(240)])))
    assert seconds == 6 * HOUR
    heights = ys(chart)
    assert max(heights) == min(heights)  # as many in every stretch
    assert "600" in ticks(chart)


def test_units_add_up():
    chart = units_chart(with_points(points([0, 5000, 20_000])))
    assert ticks(chart) == ["0", "5k", "10k", "15k", "20k"]
