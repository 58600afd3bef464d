"""Another target for a calibration that is there."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from router.calibration import targets
from router.calibration.model import Calibration, CalibrationError
from router.calibration.targets import aimed

CANDIDATES = [
    targets.Tested(0.9, 0.5, 100, 0, 0.03, 0, 0.01),
    targets.Tested(0.8, 0.5, 200, 3, 0.044, 1, 0.02),
    targets.Tested(0.7, 0.5, 300, 8, 0.049, 2, 0.03),
    targets.Tested(0.6, 0.5, 400, 20, 0.08, 9, 0.07),
    targets.Tested(0.5, 0.5, 500, 60, 0.15, 20, 0.13),
]


@pytest.fixture
def tested(calibration: Calibration) -> Calibration:
    """Its own target takes the third candidate."""
    return replace(calibration, report={"tested": [asdict(one) for one in CANDIDATES]})


def test_a_looser_target_routes_more_and_a_stricter_less(tested: Calibration) -> None:
    loose, strict = aimed(tested, 0.12, 0.12), aimed(tested, 0.045, None)
    assert (strict.threshold, tested.threshold, loose.threshold) == (0.8, 0.7, 0.6)
    assert (loose.target, loose.ood_target, strict.target, strict.ood_target) == (0.12, 0.12, 0.045, 0.05)


def test_its_own_target_changes_nothing(tested: Calibration) -> None:
    assert aimed(tested, None, None) is tested
    assert aimed(tested, tested.target, tested.ood_target) is tested
    again = aimed(replace(tested, target=0.9), 0.05, None)
    assert (again.threshold, again.novelty_limit) == (tested.threshold, tested.novelty_limit)


def test_a_target_that_nothing_keeps_is_refused(tested: Calibration) -> None:
    with pytest.raises(CalibrationError, match="no threshold keeps the error under 0%"):
        aimed(tested, 0.0001, None)


@pytest.mark.parametrize("report", [{}, {"tested": []}, {"tested": [{"threshold": 0.5}]}, {"tested": 7}])
def test_a_file_that_tells_no_candidates(calibration: Calibration, report: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match="says nothing of other targets"):
        aimed(replace(calibration, report=report), 0.1, None)
