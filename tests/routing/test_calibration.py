"""The calibration file: what was written is read, whatever else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.routing.calibration import (
    FILE_NAME,
    FORMAT,
    MOST_BYTES,
    CalibrationError,
    read_calibration,
    write_calibration,
)


@pytest.fixture
def path(kit: Any, tmp_path: Path) -> Path:
    path = tmp_path / FILE_NAME
    write_calibration(path, kit.calibration(report={"rows": 100}))
    return path


def test_the_file_gives_back_what_was_written_and_nothing_lies_beside_it(kit: Any, path: Path) -> None:
    assert read_calibration(path) == kit.calibration(report={"rows": 100})
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text())["format"] == FORMAT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:60], "is damaged: not JSON"),
        (lambda text: "[" * 100_000, "is damaged: not JSON"),
        (lambda text: "[]", "is damaged: no calibration file"),
        (lambda text: "{}", "is damaged: no calibration file"),
        (lambda text: text.replace('"threshold": 0.6', '"threshold": 1.2'), "is damaged: threshold: "),
        (lambda text: text.replace('"threshold": 0.6', '"threshold": NaN'), "is damaged: threshold: "),
        (lambda text: text.replace('"delta": 0.05', '"delta": 0'), "is damaged: delta: "),
        (lambda text: text.replace('"created"', '"made"'), "is damaged: created: "),
        (lambda text: text.replace('"legal"', "7"), r"is damaged: adapters\.0: "),
        (lambda text: text.replace("{", '{"margin": 1,', 1), "is damaged: margin: "),
    ],
)
def test_a_damaged_file_is_refused_and_says_where(path: Path, change: Any, message: str) -> None:
    path.write_text(change(path.read_text()))
    with pytest.raises(CalibrationError, match=message) as caught:
        read_calibration(path)
    assert str(path) in caught.value.message
    assert "run `lora-router route calibrate` again" in caught.value.message


@pytest.mark.parametrize("content", [b"\xff{}", b'{"format": 1' + b"0" * 5000 + b"}"])
def test_bytes_that_are_no_json_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="is damaged: not JSON"):
        read_calibration(path)


def test_another_format_is_refused(path: Path) -> None:
    path.write_text('{"format": 1, "stages": []}')
    with pytest.raises(CalibrationError, match=rf"has format 1, this version reads {FORMAT}: .*calibrate"):
        read_calibration(path)


def test_a_file_that_is_too_large_is_refused(path: Path) -> None:
    with path.open("a") as file:
        file.write(" " * MOST_BYTES)
    with pytest.raises(CalibrationError, match="route calibrate"):
        read_calibration(path)


def test_a_file_that_is_not_there_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"No such file.*route calibrate"):
        read_calibration(tmp_path / "none.json")
