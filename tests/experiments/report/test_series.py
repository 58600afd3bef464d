"""Points for plots: cumulative, thinned, and nothing where nothing is known."""

from __future__ import annotations

import math

import pytest

from router.experiments.model import Kind
from router.experiments.report.build import report
from router.experiments.stats import Metric, Plan, compare
from tests.experiments.report.sums import DAY, LONG_AFTER, STARTED, SumsStore, both, bucket, ones


def points(buckets, arm="new", now=LONG_AFTER, most=200):
    found = report(SumsStore(buckets), "medical-v2", now=now, points=most).points
    return [point for point in found if point.arm == arm]


def test_every_point_is_the_comparison_of_all_until_then():
    found = points(both(1000, 1100, hours=10))
    assert len(found) == 10
    for hour, point in enumerate(found, 1):
        sums = [ones(s * hour // 10, 200 * hour) for s in (1000, 1100)]
        expected = compare(Metric("success", Kind.PROPORTION), *sums, Plan(units=4000))
        assert (point.effect, point.low, point.high) == pytest.approx((expected.effect, *expected.interval))
        assert (point.time, point.units, point.share) == (STARTED + 3600.0 * hour, 200 * hour, 0.5)


def test_many_buckets_are_thinned_and_the_last_is_kept():
    found = points(both(3000, 3300, 6000, hours=700), most=50)
    assert len(found) == 50
    assert (found[-1].time, found[-1].units) == (STARTED + 3600.0 * 700, 6000)
    assert points(both(500, 500), most=0) == []


def test_young_units_count_in_the_share_but_not_in_the_effect():
    found = points(both(1000, 1100, hours=48), now=STARTED + 2 * DAY)
    assert found[23].effect == found[47].effect
    assert found[47].units == 2000
    nothing = points(both(1000, 1100, hours=3), now=STARTED + DAY / 2)
    assert all(math.isnan(p.effect) and math.isinf(p.high) for p in nothing)


def test_an_arm_without_units_at_first_has_no_effect_yet():
    found = points([bucket("control", 50, 25), *both(500, 550, hours=1), bucket("new", 50, 25, at=1)])
    assert [math.isnan(p.effect) for p in found] == [False, False]
    early = points([bucket("control", 50, 25), bucket("new", 50, 25, at=1)])
    assert [math.isnan(p.effect) for p in early] == [True, False]
    assert (early[0].share, early[0].units) == (0.0, 0)


def test_control_has_points_for_its_share():
    found = points(both(1000, 1100, hours=4), arm="control")
    assert [p.effect for p in found] == [0.0] * 4
    assert all(p.share_low < p.share < p.share_high for p in found)


def test_relative_effects_are_those_of_the_statistics_at_every_point():
    found = report(SumsStore(both(1000, 1100, hours=5)), "medical-v2", now=LONG_AFTER)
    last = [p for p in found.points if p.arm == "new"][-1]
    primary = found.arms[0].primary
    assert (last.relative, last.relative_low, last.relative_high) == pytest.approx(
        (primary.relative, primary.relative_low, primary.relative_high)
    )
