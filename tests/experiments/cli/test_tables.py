"""Numbers of a report as rows of text, and what is said of them."""

import math
from dataclasses import replace

import pytest

from router.experiments.cli import report as tables
from router.experiments.cli import wording
from router.experiments.model import Aggregate, Kind, MetricSpec, SegmentSpec
from router.experiments.report.model import MetricReport, SegmentReport
from tests.experiments.report.sums import SPEC, running
from tests.experiments.report.told import REPORT

FOUND = MetricReport("success", (100, 90), (0.5, 0.6), 0.1, 0.05, 0.15, 0.01, "asymptotic", alpha=0.05)


def with_arm(**fields):
    (arm,) = REPORT.arms
    return replace(REPORT, arms=(replace(arm, **fields),))


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.05, 0.15, "[+0.05, +0.15]"),
        (-math.inf, 0.15, "below +0.15"),
        (0.05, math.inf, "above +0.05"),
        (-math.inf, math.inf, "no interval yet"),
        (math.nan, math.nan, "no interval yet"),
    ],
)
def test_an_interval_never_has_an_infinite_end(low, high, told):
    found = replace(FOUND, low=low, high=high)
    assert wording.interval(found) == told
    assert wording.effect(found).startswith("+0.1 [" if told.startswith("[") else "+0.1†, ")


@pytest.mark.parametrize("bounds", [(None, None), (-math.inf, math.inf), (math.nan, 0.3)])
def test_a_relative_effect_without_bounds_is_not_told(bounds):
    low, high = bounds
    assert wording.relative(replace(FOUND, relative=0.2, relative_low=low, relative_high=high)) == ""


def test_the_past_stands_beside_what_was_measured():
    plain = replace(FOUND, effect=0.08, low=-0.02, high=0.18)
    table = tables.past(with_arm(primary=FOUND, unadjusted=plain))
    assert table.rows == (
        ("new", "adjusted by the past (CUPED)", "+0.1", "[+0.05, +0.15]", "50% narrower"),
        ("new", "as measured", "+0.08", "[-0.02, +0.18]", ""),
    )
    assert wording.narrower(plain, FOUND) == "100% wider"
    assert tables.past(REPORT).rows == ()


def test_secondary_metrics_stand_by_metric_with_their_level_and_cap():
    many = replace(FOUND, alpha=0.05 / 3)
    found = tables.secondary(with_arm(secondary=(replace(many, metric="seconds", cap=30.0), many)))
    assert found.title == "Secondary metrics (decide nothing; intervals corrected for all 3)"
    assert [row[:2] for row in found.rows] == [("seconds (capped at 30)", "new"), ("success", "new")]
    assert ("98.3% interval, corrected for 3", "i") in found.columns
    assert not {"p", "verdict"} & {head for head, _ in found.columns}
    one = tables.secondary(with_arm(secondary=(FOUND,)))
    assert one.title == "Secondary metrics (decide nothing)"


@pytest.mark.parametrize(
    ("differ", "text", "told"),
    [
        (False, "", "no difference between values is shown: read the overall effect"),
        (True, "", "effects differ between values: p = 0.002"),
        (True, "as the server says", "as the server says"),
    ],
)
def test_segments_have_no_verdict_of_their_own(differ, text, told):
    segment = SegmentReport("language", {"en": FOUND, "(none)": FOUND}, 0.002, differ, text)
    (table,) = tables.segments(with_arm(segments=(segment,)))
    assert table.title == "success by language: new against control"
    assert table.rows[0] == ("en", "190", "0.5", "0.6", "+0.1", "[+0.05, +0.15]")
    assert table.notes == (told,)
    assert not {"p", "verdict"} & {head for head, _ in table.columns}


def test_a_label_without_values_yet_is_told_in_words():
    segment = SegmentReport("language", {}, 1.0, False, "no value has two mature units yet")
    found = list(tables.tables(with_arm(segments=(segment,))))
    assert found[-1].rows == ()
    assert found[-1].notes == ("no value has two mature units yet",)


def test_a_plan_tells_what_is_new_in_it():
    seconds = MetricSpec("seconds", Kind.MEAN, False, Aggregate.SUM, cap=30.0, least=-5.0)
    spec = replace(
        SPEC, secondary=(seconds,), segments=(SegmentSpec("language", ("en", "de")),), grace=7200.0
    )
    told = dict(wording.pairs_of(running(spec)))
    assert told["secondary"].startswith("seconds (capped at 30): mean, less is better")
    assert "-5 at least" in told["secondary"]
    assert told["segment"] == "label language: en, de"
    assert told["grace"] == "2 hours more for them to arrive"
