"""What a calibration's file tells of thresholds, whatever is in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.extensions.console.routing import curve_of, held_out
from router.routing.state import CalibrationState


def candidate(threshold: float, routed: int, errors: int = 0, **more: Any) -> dict[str, Any]:
    said = {"threshold": threshold, "novelty_limit": 0.1, "routed": routed, "errors": errors}
    return {**said, "error_bound": 0.02, "strange_routed": 3, "strange_bound": 0.01, **more}


REPORT = {
    "tested": [candidate(0.9, 50), candidate(0.5, 80, 4), candidate(0.7, 70, 1)],
    "counts": {"fitted_on": 50, "proven_on": 100, "ood_proven_on": 40},
    "held_out": {
        "accuracy": 0.9,
        "coverage": 0.8,
        "error": 0.01,
        "ood_routed": None,
        "stages": {"words": 70},
    },
}
FITTED = CalibrationState(
    "2026-11-27T07:29:29+00:00", 0.7, 0.1, 0.05, 0.05, 0.05, ("legal",), ("words",), (), (), REPORT
)


def test_candidates_lie_by_what_they_route_and_the_one_in_force_is_among_them() -> None:
    curve = curve_of(FITTED)
    assert curve is not None
    assert [one.routed for one in curve.candidates] == [50, 70, 80]
    assert (curve.rows, curve.strange, curve.present) == (100, 40, 1)
    plotted = curve.plotted(FITTED)
    assert plotted["points"][2]["errors"] == 4
    assert (plotted["present"], plotted["target"]) == (1, 0.05)


def test_one_in_force_that_the_file_does_not_know_is_none_of_them() -> None:
    curve = curve_of(replace(FITTED, threshold=0.71))
    assert curve is not None
    assert curve.present is None


@pytest.mark.parametrize(
    "tested",
    [
        None,
        [],
        [{}],
        "x",
        [candidate(2.0, 5)],
        [candidate(0.5, -1)],
        [candidate(0.5, 101)],
        [candidate(0.5, 5, error_bound=float("nan"))],
        [candidate(0.5, 5) | {"routed": "many"}],
    ],
)
def test_what_is_no_curve_is_not_drawn(tested: Any) -> None:
    assert curve_of(replace(FITTED, report=REPORT | {"tested": tested})) is None


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=6), inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(anything, anything, anything)
def test_no_report_is_a_fault(tested: Any, counts: Any, held: Any) -> None:
    of = replace(FITTED, report={"tested": tested, "counts": counts, "held_out": held})
    curve_of(of)
    found = held_out(of)
    assert all(share is None or 0 <= share <= 1 for share in (found.accuracy, found.coverage, found.error))


def test_held_out_shares() -> None:
    found = held_out(FITTED)
    assert (found.accuracy, found.strange, found.decided) == (0.9, None, {"words": 70})
