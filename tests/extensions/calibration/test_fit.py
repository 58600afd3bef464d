"""From votes to a calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.calibration.model import CalibrationError
from router.calibration.targets import Goal
from router.extensions.calibration.cascade import outcome_at, run_cascade
from router.extensions.calibration.fit import calibrate
from router.extensions.calibration.rows import Ballot, DataRow
from router.extensions.calibration.stages import fit_scaler
from router.types import Vote


def test_it_cools_what_is_too_sure_and_warms_what_is_not(calibration: Any, worlds: Any) -> None:
    assert worlds.heat == {"cheap": 3.0, "dear": 0.4}
    assert calibration.scalers["cheap"].temperature > 1.2
    assert calibration.scalers["dear"].temperature < 0.8
    held = calibration.report["held_out"]
    assert held["ece"]["dear"]["ece"] < 0.08
    assert held["ece"]["dear"]["low"] <= held["ece"]["dear"]["ece"] <= held["ece"]["dear"]["high"]


def test_what_it_proves_holds_for_fresh_requests(calibration: Any, worlds: Any, setting_of: Any) -> None:
    world, setting = worlds(99), setting_of()
    fresh = world.ballots(3000, none=0.1), world.ballots(1500, none=1.0)
    stops = [stage.stop for stage in calibration.stages]
    known, strange = (
        outcome_at(
            run_cascade(rows, calibration.stages, calibration.scalers, setting.axes, setting.kinds),
            stops, calibration.threshold, calibration.novelty_limit,
        )
        for rows in fresh
    )  # fmt: skip
    assert known.errors <= 0.05 * known.count
    assert strange.count <= 0.05 * 1500
    assert known.count > 0.6 * 3000
    assert 0 < (known.stage[known.routed] == 0).sum() < known.count  # both classifiers decide some


def test_votes_together_are_better_than_the_best_alone(
    calibration: Any, worlds: Any, setting_of: Any
) -> None:
    rows, setting = worlds(5).ballots(1500), setting_of()
    both = run_cascade(rows, calibration.stages, calibration.scalers, setting.axes, setting.kinds).right
    assert both[:, 1].mean() > both[:, 0].mean()


def labelled(ballots: list[Ballot], label: str) -> list[Ballot]:
    return [replace(b, row=DataRow(b.row.text, label)) for b in ballots]


def test_too_few_requests(world: Any, setting_of: Any) -> None:
    with pytest.raises(CalibrationError, match=r"needs at least 59 .* give 89 or more"):
        calibrate(world.ballots(60), [], setting_of())
    with pytest.raises(CalibrationError, match="out-of-distribution requests to test on prove nothing"):
        calibrate(world.ballots(200), world.ballots(40, none=1.0), setting_of())


def test_one_label_only(world: Any, setting_of: Any) -> None:
    with pytest.raises(CalibrationError, match="all requests have the label 'medical'"):
        calibrate(labelled(world.ballots(200), "medical"), [], setting_of())


def test_an_adapter_without_requests(world: Any, setting_of: Any) -> None:
    rows = [b for b in world.ballots(300) if b.row.label != "qa"]
    with pytest.raises(CalibrationError, match="no request is labelled 'qa'"):
        calibrate(rows, [], setting_of())


def test_a_strange_request_with_a_label(world: Any, setting_of: Any) -> None:
    with pytest.raises(CalibrationError, match="has the label 'qa': label it"):
        calibrate(world.ballots(300), labelled(world.ballots(100), "qa"), setting_of())


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 1.5])
def test_scores_that_are_no_confidences(world: Any, setting_of: Any, score: float) -> None:
    rows = world.ballots(300)
    rows[7] = replace(rows[7], votes=(Vote("cheap", {"qa": score}), rows[7].votes[1]))
    with pytest.raises(CalibrationError, match="classifier cheap scored"):
        calibrate(rows, [], setting_of())


def test_a_classifier_that_loses_its_votes(world: Any, setting_of: Any) -> None:
    rows = [replace(b, votes=(b.votes[0], Vote("dear", error="raised"))) for b in world.ballots(300)]
    with pytest.raises(CalibrationError, match=r"classifier dear lost 300 of 300 votes \(raised\)"):
        calibrate(rows, [], setting_of())


def test_a_goal_that_is_no_share() -> None:
    with pytest.raises(CalibrationError, match="--ood-target is 5: it must lie between 0 and 1"):
        Goal(ood_target=5)


@pytest.mark.slow
def test_without_strange_requests_nothing_is_kept_out(worlds: Any, setting_of: Any) -> None:
    found = calibrate(worlds(3).ballots(400), [], setting_of())
    assert found.novelty_limit == 1.0
    assert found.report["held_out"]["ood_routed"] is None
    assert found.report["proof"]["error_bound"] <= 0.05


def test_a_classifier_that_hardly_speaks_keeps_its_scale(world: Any) -> None:
    rows = [replace(b, votes=(Vote("cheap", declined=True), b.votes[1])) for b in world.ballots(50)]
    share = np.full(50, 1 / 50)
    assert fit_scaler(rows, 0, world.names, share).temperature == 1.0
    assert fit_scaler(rows, 1, world.names, share).temperature != 1.0
