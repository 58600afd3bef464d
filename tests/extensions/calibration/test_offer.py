"""What is offered where rows cannot prove the target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.calibration.file import FILE_NAME, read_calibration, write_calibration
from router.calibration.model import CalibrationError
from router.calibration.targets import Goal, aimed
from router.extensions.calibration.cascade import outcome_at, run_cascade
from router.extensions.calibration.fit import calibrate
from router.extensions.calibration.offer import METHOD, offer

HARD = Goal(0.01, 0.05, 0.02)


def test_few_rows_get_an_offer_that_fresh_requests_keep(worlds: Any, setting_of: Any) -> None:
    world, setting = worlds(3), setting_of()
    rows = world.ballots(80), world.ballots(60, none=1.0)
    with pytest.raises(CalibrationError):
        calibrate(*rows, setting)
    found = offer(*rows, setting)
    of, fresh = found.calibration, worlds(4).ballots(3000)
    stops = [stage.stop for stage in of.stages]
    there = outcome_at(
        run_cascade(fresh, of.stages, of.scalers, setting.axes, setting.kinds),
        stops,
        of.threshold,
        of.novelty_limit,
    )
    assert 0.05 <= of.target < 0.2
    assert there.errors <= of.target * there.count
    assert there.count > 0.4 * len(fresh)
    assert of.report["method"] == METHOD
    assert of.report["proof"]["error_bound"] <= of.target


def test_it_says_how_many_requests_the_target_needs(worlds: Any, setting_of: Any) -> None:
    world, setting = worlds(3), setting_of()
    found = offer(world.ballots(80), [], setting)
    assert found.needed is not None
    assert 89 <= found.needed <= 3000
    assert calibrate(world.ballots(found.needed * 2), [], setting).target == 0.05


def test_a_target_out_of_reach_has_no_number(worlds: Any, setting_of: Any) -> None:
    world = worlds(3)
    world.skill = {"cheap": 0.2, "dear": 0.2}
    assert offer(world.ballots(80), [], setting_of(HARD)).needed is None


def test_what_is_offered_is_read_again(worlds: Any, setting_of: Any, tmp_path: Any) -> None:
    world = worlds(3)
    of = offer(world.ballots(12), world.ballots(5, none=1.0), setting_of()).calibration
    write_calibration(tmp_path / FILE_NAME, of)
    found = read_calibration(tmp_path / FILE_NAME)
    assert found == of
    assert aimed(found, None, None) == of


def test_rows_that_cannot_be_used_are_refused(world: Any, setting_of: Any) -> None:
    rows = [b for b in world.ballots(100) if b.row.label != "qa"]
    with pytest.raises(CalibrationError, match="no request is labelled 'qa'"):
        offer(rows, [], setting_of())


def test_weights_of_other_adapters_leave_the_thresholds_to_the_rows(worlds: Any, setting_of: Any) -> None:
    setting = setting_of()
    general = offer(worlds(5).ballots(400), worlds(5).ballots(60, none=1.0), setting).calibration
    known = {name: scaler for name, scaler in general.scalers.items() if name != "dear"}
    general = replace(general, scalers=known, stages=general.stages[:1])
    world = worlds(3)
    of = offer(world.ballots(80), world.ballots(60, none=1.0), setting, general).calibration
    assert (of.scalers, of.stages) == (general.scalers, general.stages)
    assert (list(of.binding.classifiers), of.left_out) == (["cheap"], ("dear",))
    assert 0.0 < of.threshold < 1.0
    assert of.target < 0.3
