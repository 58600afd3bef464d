"""What a report's charts draw."""

import math
import re
from dataclasses import replace

import pytest

from router.experiments.charts import effect_chart
from router.experiments.report.model import PlotPoint
from tests.experiments.report.sums import REPORT, STARTED

HOUR = 3600.0
HEIGHT = 300.0
WINDOW = REPORT.experiment.spec.window


def points(units, low=-0.1, high=0.3):
    """One each hour, with so many units until then."""
    return tuple(PlotPoint(STARTED + HOUR * (i + 1), "new", 0.1, low, high, n) for i, n in enumerate(units))


def with_points(found):
    return replace(REPORT, points=found, time=STARTED + 400 * HOUR + WINDOW)


def ticks(chart):
    return re.findall(r'text-anchor="end">\n?([^<]*)</text>', chart)


def ys(chart):
    return [float(y) for line in re.findall(r'points="([^"]*)"', chart) for y in re.findall(r",(\S+)", line)]


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-0.1, math.inf), (math.nan, math.nan)])
def test_infinite_ends_are_cut_at_the_frame(bounds):
    made = points([10, 20, 30, 40])
    report = with_points((*points([5], *bounds), *(replace(p, time=p.time + HOUR) for p in made)))
    chart = effect_chart(report)
    assert 'class="band c1"' in chart
    assert all(-HEIGHT <= y <= 2 * HEIGHT for y in ys(chart))
    assert not re.search("nan|inf", chart)


def test_nothing_is_drawn_of_one_point_or_none():
    for made in ((), points([10])):
        assert effect_chart(with_points(made)) == ""


def test_effects_of_shares_are_in_points():
    assert "+10" in ticks(effect_chart(with_points(points([10, 20, 30]))))
