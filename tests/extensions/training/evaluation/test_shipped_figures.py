"""The scores of the adapters, on docs/results.md and among the results, are those of the report cards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
NAMES = sorted(report.parent.name for report in (ROOT / "adapters").glob("*/report.json"))
RESULTS, TRAINING = (
    (ROOT / page).read_text() for page in ("docs/results.md", "benchmarks/results/training.md")
)


def row(text: str, start: str) -> list[str]:
    """Cells of the row that begins with `start`."""
    found: list[str] = re.findall(rf"^\| {re.escape(start)} \|(.*)\|$", text, re.MULTILINE)
    assert len(found) == 1, f"{len(found)} rows begin with {start!r}"
    return [cell.strip() for cell in found[0].split("|")]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_the_reports(name: str) -> None:
    report = json.loads((ROOT / "adapters" / name / "report.json").read_text())
    digits = report["scale"]

    def told(estimate: dict[str, Any], interval: bool = True) -> str:
        value, low, high = (f"{estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
        return f"{value} [{low}, {high}]" if interval else value

    scores = [report["arms"][arm]["score"] for arm in ("base", "base_with_examples", "adapter")]
    plain = [told(score, interval=False) for score in scores]
    what, *figures = row(RESULTS, f"[{name}](../adapters/{name}/REPORT.md)")
    assert f", {report['data']['asked']} test rows" in what
    assert figures == plain
    gain = report["gains"]["adapter - base_with_examples"]["score"]
    what, *figures = row(TRAINING, name)[:5]
    assert what.endswith(f", {report['data']['asked']}")
    assert figures == [*plain[:2], told(scores[2]), told(gain)]
