"""A calibration that is proven again on the rows that it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.calibration.model import CalibrationError
from router.extensions.calibration.fit import calibrate, split_rows
from router.extensions.calibration.refit import TargetBroken, prove_again
from router.extensions.calibration.rows import Ballot, DataRow


@pytest.fixture
def proof(worlds: Any, setting_of: Any) -> tuple[Any, list[Ballot], list[Ballot]]:
    """A calibration, and the labelled and strange rows that prove it."""
    world = worlds(7)
    known, strange = world.ballots(600, none=0.1), world.ballots(300, none=1.0)
    return calibrate(known, strange, setting_of()), split_rows(known)[1], split_rows(strange)[1]


def test_the_same_votes_prove_the_same(proof: Any, setting_of: Any) -> None:
    of, known, strange = proof
    again = prove_again(of, known, strange, setting_of()).calibration
    assert (again.threshold, again.novelty_limit) == (of.threshold, of.novelty_limit)
    assert again.report["proof"] == of.report["proof"]
    assert again.report["tested"] == of.report["tested"]
    assert again.scalers == of.scalers


def test_worse_votes_need_a_stricter_threshold_or_break_the_target(proof: Any, setting_of: Any) -> None:
    of, known, strange = proof
    others = {"code": "legal", "legal": "medical", "medical": "qa", "qa": "code", "": ""}

    def misled(share: int) -> list[Ballot]:
        return [
            replace(b, row=DataRow(b.row.text, others[b.row.label])) if i % 100 < share else b
            for i, b in enumerate(known)
        ]

    with pytest.raises(TargetBroken) as broken:
        prove_again(of, misled(30), strange, setting_of())
    against = broken.value.against
    assert len(against) > 50
    assert {ballot.row.text for ballot in against} <= {ballot.row.text for ballot in known}
    with pytest.raises(TargetBroken, match="no threshold keeps the error under 5%"):
        prove_again(of, misled(100), strange, setting_of())


def test_other_classifiers_are_another_calibration(proof: Any, setting_of: Any) -> None:
    of, known, strange = proof
    with pytest.raises(CalibrationError, match="for other classifiers or adapters"):
        prove_again(of, known, strange, replace(setting_of(), classifiers=("cheap",)))
    with pytest.raises(CalibrationError, match="does not say what it tested"):
        prove_again(replace(of, report={}), known, strange, setting_of())
