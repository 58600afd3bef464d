import re
from itertools import pairwise

import pytest

from router.experiments.charts import DAY, Chart, PlotRule, PlotSeries, draw, ticks, times


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


def test_a_chart_holds_lines_bands_and_rules_and_escapes_names():
    series = PlotSeries("<new>", "c1", [(0, 0.0), (10, 1.0)], [(0, -1e9, 1e9), (10, 0.5, 1.5)])
    made = draw(Chart("a & b", (0, 10), (0, 2), str, [series], [PlotRule(1.0, "limit", "limit")]), "one")
    assert 'points="64.0,266.0 640.0,140.0"' in made  # left bottom, right middle
    assert "&lt;new&gt;" in made
    assert "<new>" not in made
    assert 'aria-label="a &amp; b"' in made
    assert 'class="rule limit"' in made
    assert "1000000000" not in made  # far off the chart is cut


def test_names_at_the_edge_do_not_overlap():
    lines = [PlotSeries(name, "c1", [(0, 1.0), (1, 1.0)]) for name in "abc"]
    made = draw(Chart("t", (0, 1), (0, 2), str, lines), "one")
    heights = sorted(float(y) for y in re.findall(r'class="name c1" x="[^"]+" y="([^"]+)"', made))
    assert all(b - a >= 15 for a, b in pairwise(heights))
    assert len(heights) == 3
