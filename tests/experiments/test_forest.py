"""All ranges on one axis: what is better lies to the right."""

from __future__ import annotations

import math
from dataclasses import replace

from router.experiments.forest import DECIDES, GUARDS, TOLD, forest_of
from router.experiments.report.model import MetricReport, Report
from tests.experiments.report.sums import REPORT


def with_metrics(**of_arm: object) -> Report:
    """The example's report with one arm, which has these metrics."""
    return replace(REPORT, arms=(replace(REPORT.arms[0], early=(), **of_arm),))  # type: ignore[arg-type]


def metric(name: str, low: float, high: float, **more: object) -> MetricReport:
    middle = (low + high) / 2
    return MetricReport(name, (900, 900), (0.5, 0.5 + middle), middle, low, high, 0.1, "exact", **more)  # type: ignore[arg-type]


PRIMARY = metric("success", 0.02, 0.12)


def test_what_is_better_lies_to_the_right_and_the_margin_to_the_left() -> None:
    fewer = metric("error", -0.03, -0.01, higher_is_better=False, state="within", margin=0.03)
    found = forest_of(with_metrics(primary=PRIMARY, guardrails=(fewer,), secondary=()))
    assert found
    first, rail = found.rows
    assert [row.role for row in found.rows] == [DECIDES, GUARDS]
    assert found.zero < first.low < (first.at or 0) < first.high < 100
    assert found.zero < rail.low < rail.high
    assert rail.limit is not None
    assert 0 < rail.limit < found.zero
    assert (first.change, rail.allowed) == ("+7.0 points (2.0 to 12.0)", "at most 3.0 points worse")
    assert (first.tone, rail.tone) == ("ok", "ok")
    assert ("0" in [text for _, text in found.ticks], "-" in str(found.ticks)) == (True, False)


def test_a_mean_is_placed_in_percent_and_a_range_off_the_axis_is_cut() -> None:
    relative = {"relative": 4.0, "relative_low": -9.0, "relative_high": 17.0}
    wide = metric("likes", -4.0, 8.0, **relative)
    found = forest_of(with_metrics(primary=PRIMARY, guardrails=(), secondary=(wide,)))
    assert found
    row = found.rows[1]
    assert (row.role, row.cut, row.low, row.high) == (TOLD, (True, True), 0.0, 100.0)
    assert row.change.startswith("+400.0 %")
    assert found.rows[0].high - found.rows[0].low > 10  # the metric that decides is no dot


def test_without_a_range_there_is_a_row_and_no_axis() -> None:
    early = metric("success", -math.inf, math.inf)
    found = forest_of(with_metrics(primary=replace(early, effect=math.nan), guardrails=(), secondary=()))
    assert found
    assert (found.rows[0].at, found.ticks) == (None, ())
    assert forest_of(replace(REPORT, arms=())) is None
