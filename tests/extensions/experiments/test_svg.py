"""What a report's bars draw."""

import math
import re

from router.extensions.experiments.svg import Bar, range_bars


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
