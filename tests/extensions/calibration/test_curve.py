"""What every threshold does, and what more rows would buy, on requests that a known distribution drew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.calibration.model import Calibration
from router.calibration.targets import Goal
from router.extensions.calibration.cascade import outcome_at, run_cascade
from router.extensions.calibration.certify import upper_bound
from router.extensions.calibration.curve import ThresholdCurve
from router.extensions.calibration.fit import Setting, fit_calibration

GOAL = Goal()


@pytest.fixture
def setting(setting_of) -> Setting:
    return setting_of()


@pytest.fixture
def of(world, setting) -> Calibration:
    found, _ = fit_calibration(world.ballots(300, none=0.1), world.ballots(100, none=1.0), setting)
    return replace(found, threshold=0.87, novelty_limit=0.9)


def test_a_point_is_what_the_cascade_does_there(world, setting, of):
    known, strange = world.ballots(200, none=0.1), world.ballots(100, none=1.0)
    points = ThresholdCurve(of, known, strange, setting.kinds).points(0.05)
    assert [p.threshold for p in points] == sorted({p.threshold for p in points}, reverse=True)
    here = next(p for p in points if p.threshold == of.threshold)
    stops = [stage.stop for stage in of.stages]
    runs = [run_cascade(rows, of.stages, of.scalers, of.axes, setting.kinds) for rows in (known, strange)]
    there, away = (outcome_at(run, stops, of.threshold, of.novelty_limit) for run in runs)
    assert (here.routed, here.errors, here.strange_routed) == (there.count, there.errors, away.count)
    assert here.error_bound == upper_bound(there.errors, there.count, 0.05)
    meant = [bool(ballot.row.label) for ballot in known]
    assert here.coverage == there.routed[meant].mean()


def test_looser_thresholds_route_more(world, setting, of):
    points = ThresholdCurve(of, world.ballots(200), world.ballots(50, none=1.0), setting.kinds).points(0.05)
    assert [p.routed for p in points] == sorted(p.routed for p in points)
    assert points[0].coverage < points[-1].coverage


def test_more_rows_prove_more_and_strange_ones_are_what_is_missing(world, setting, of):
    few = ThresholdCurve(of, world.ballots(400), world.ballots(55, none=1.0), setting.kinds)
    now, known, strange, both = (
        few.forecast(GOAL, *more) for more in ((0, 0), (2000, 0), (0, 2000), (2000, 2000))
    )
    assert now.coverage <= known.coverage <= both.coverage
    assert now.coverage <= strange.coverage <= both.coverage
    assert both.coverage > now.coverage
    assert few.forecast(Goal(target=0.2, ood_target=0.5)).coverage >= both.coverage


def test_without_strange_requests_their_target_does_not_count(world, setting, of):
    seen = ThresholdCurve(of, world.ballots(300), [], setting.kinds)
    assert {p.strange_bound for p in seen.points(0.05)} == {0.0}
    assert seen.forecast(GOAL).coverage == seen.forecast(Goal(ood_target=0.9)).coverage > 0


def test_nothing_can_be_proven_with_a_handful(world, setting, of):
    found = ThresholdCurve(of, world.ballots(20), [], setting.kinds).forecast(GOAL)
    assert (found.coverage, found.threshold) == (0.0, 1.0)
