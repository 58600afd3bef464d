"""The calibration file: what was written is read, whatever else is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from router.calibration.file import FILE_NAME, read_calibration, write_calibration
from router.calibration.model import CalibrationError


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
        (lambda s: re.sub(r'("pairs".*?"code": )[-0-9.e]+', r"\1NaN", s, count=1, flags=re.S), "not finite"),
        (lambda s: s.replace('"pairs": {', '"pairs": {"more": [1], ', 1), "is damaged: AttributeError"),
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
