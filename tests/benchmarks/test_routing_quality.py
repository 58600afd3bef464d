"""The arithmetic of the routing benchmark, and its bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.routing_quality import Arm, best, judge, main, shares
from router.extensions.calibration.rows import DataRow

ROWS = [
    DataRow("t1", "tea", "a"),
    DataRow("t2", "tea", "b"),
    DataRow("c1", "coffee", "a"),
    DataRow("n1", "", "b"),
]
ARM = Arm(
    known=[{"tea": 0.9, "coffee": 0.1}, {"tea": 0.3, "coffee": 0.4}, {"coffee": 0.8}, {"tea": 0.5}],
    strange=[{"tea": 0.85}, {}],
    milliseconds=[1.0, 2.0, 3.0],
)


def test_forced_choice_leaves_out_what_is_for_the_base() -> None:
    line = judge("toy", ARM, ROWS, ["tea", "coffee"])
    assert line["accuracy"] == pytest.approx(2 / 3)
    assert line["macro-F1"] == pytest.approx(2 / 3)


def test_coverage_counts_all_requests_and_strange_ones_are_measured_at_its_threshold() -> None:
    line = judge("toy", ARM, ROWS, ["tea", "coffee"])
    assert (line["coverage at 5% error"], line["threshold there"]) == (0.5, 0.8)
    assert (line["OOD routed there"], line["p50 ms"]) == (0.5, 2.0)


def test_shares_by_label_and_source() -> None:
    by_label = shares({"toy": ARM}, ROWS, lambda row: row.label)
    assert by_label == [
        {"": "coffee", "requests": 1, "toy": 1.0},
        {"": "tea", "requests": 2, "toy": 0.5},
    ]
    assert [line["requests"] for line in shares({"toy": ARM}, ROWS, lambda row: row.source)] == [2, 1]


def test_no_answer_is_nobody() -> None:
    assert best({}) == ("", 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "it must be a file of JSON lines"),
        ('{"text": "x", "label": "nobody"}', "no adapter is called 'nobody'"),
        ('{"text": "x", "label": ""}', "no row has the label of an adapter"),
    ],
)
def test_bad_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    message: str,
) -> None:
    file = tmp_path / "rows.jsonl"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["routing_quality", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
