"""From votes to a calibration, and back from its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.calibration.cascade import outcome_at, run_cascade
from router.calibration.certify import Goal
from router.calibration.file import FILE_NAME, read_calibration, write_calibration
from router.calibration.fit import calibrate
from router.calibration.rows import Ballot, CalibrationError, Row
from router.calibration.stages import fit_scaler
from router.types import Vote


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Any:
    """One calibration for several tests."""
    return {}


@pytest.fixture
def calibration(made: Any, worlds: Any, setting_of: Any) -> Any:
    if "one" not in made:
        world = worlds(7)
        made["one"] = calibrate(world.ballots(600, none=0.1), world.ballots(300, none=1.0), setting_of())
    return made["one"]


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


def test_the_file_gives_back_what_was_written(calibration: Any, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    write_calibration(path, calibration)
    assert read_calibration(path) == calibration
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text())["format"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:200], "is damaged: not JSON"),
        (lambda s: "[]", "is damaged: no calibration file"),
        (lambda s: s.replace('"format": 1', '"format": 9'), "has format 9, this version reads 1"),
        (lambda s: s.replace('"threshold"', '"treshold"', 1), "is damaged: KeyError"),
        (lambda s: s.replace('"stop": 1.01', '"stop": NaN', 1), "not finite"),
        (lambda s: s.replace('"temperature": ', '"temperature": -', 1), "temperature is not above 0"),
        (lambda s: s.replace('"cheap": {', '"shout": {', 1), "do not fit together"),
        (lambda s: s.replace('"delta": 0.05', '"delta": 5', 1), "outside 0 to 1"),
    ],
)
def test_a_damaged_file_is_refused(calibration: Any, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / FILE_NAME
    write_calibration(path, calibration)
    path.write_text(change(path.read_text()))
    with pytest.raises(CalibrationError, match=message):
        read_calibration(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"No such file.*route calibrate"):
        read_calibration(tmp_path / "none.json")


def labelled(ballots: list[Ballot], label: str) -> list[Ballot]:
    return [replace(b, row=Row(b.row.text, label)) for b in ballots]


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
