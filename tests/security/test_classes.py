"""Every attack that SECURITY.md names has tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("| attack | what holds | tests |")[2]
ROWS = [line for line in PROMISES.partition("\n\n")[0].splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_a_promise_has_tests(row: str) -> None:
    files = re.findall(r"`(tests/[\w/]+\.py)`", row.rpartition(" | ")[2])
    assert files
    assert [file for file in files if "def test_" not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_there_are_promises() -> None:
    assert len(ROWS) > 15
