"""The table "What it survives" of docs/operations.md: its tests exist, and every test here is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
SECTION = PAGE.partition("## What it survives\n")[2].partition("\n## ")[0]
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ")][1:]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
CONTROLS = {"test_the_cuts_would_show_a_loss"}


def named_in(path: str) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_every_row_has_tests_that_exist(row: str) -> None:
    assert row.count(" | ") == 2
    named = TEST.findall(row)
    assert named
    assert [(path, name) for path, name in named if name not in named_in(path)] == []


def test_every_fault_that_is_tried_has_a_row() -> None:
    here = [path for path in ROOT.glob("tests/faults/test_*.py") if path.name != "test_catalogue.py"]
    tried = {name for path in here for name in named_in(str(path.relative_to(ROOT)))}
    assert tried - {name for _, name in TEST.findall(SECTION)} == CONTROLS
