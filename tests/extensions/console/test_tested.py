"""What a calibration's file tells of thresholds, whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.extensions.console.routing import proof_of
from router.routing.calibration import Calibration


def candidate(threshold: float, routed: int, errors: int = 0, **more: Any) -> dict[str, Any]:
    said = {"threshold": threshold, "routed": routed, "errors": errors, "error_bound": 0.02}
    return {**said, "strange_routed": 3, "strange_bound": 0.01, "proven": True} | more


REPORT = {
    "tested": [candidate(0.9, 50), candidate(0.7, 70, 1), candidate(0.5, 80, 4)],
    "rows": 100,
    "strange_rows": 40,
    "accuracy": 0.9,
    "coverage": 0.8,
    "error": 0.01,
    "strange_routed": 3,
    "labels": {},
}


def calibrated(report: Any = REPORT, **changes: Any) -> Calibration:
    said = {"created": "2026-11-27T07:29:29+00:00", "threshold": 0.7, "target": 0.05, "strange_target": 0.05}
    return Calibration.model_validate(
        {**said, "delta": 0.05, "adapters": ("legal",), "report": report, **changes}
    )


def test_candidates_are_as_the_file_has_them() -> None:
    proof = proof_of(calibrated())
    assert proof is not None
    assert (proof.rows, proof.strange_rows) == (100, 40)
    assert [(one.threshold, one.routed, one.errors) for one in proof.tested] == [
        (0.9, 50, 0),
        (0.7, 70, 1),
        (0.5, 80, 4),
    ]


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
        [candidate(float("nan"), 5)],
        [candidate(0.5, 5, 6)],
        [candidate(0.5, 5, strange_routed=41)],
        [candidate(0.5, 5) | {"routed": "many"}],
    ],
)
def test_what_is_no_proof_is_not_shown(tested: Any) -> None:
    assert proof_of(calibrated(REPORT | {"tested": tested})) is None


anything = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=6), inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(sorted(REPORT)), anything))
def test_no_report_is_a_fault(report: dict[str, Any]) -> None:
    proof = proof_of(calibrated(REPORT | report))
    assert proof is None or 0 <= proof.accuracy <= 1
