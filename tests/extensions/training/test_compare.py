"""`lora-router compare`: two adapter folders on the same rows, and the result in words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from router.cli.main import run
from router.extensions.training.commands.compare import headline, verdict
from router.extensions.training.evaluation.versions import ComparedRow, VersionComparison
from router.extensions.training.run import train
from router.paired import difference


def compared(old: list[float], new: list[float]) -> VersionComparison:
    gap = difference(new, old, range(len(old)))
    rows = [
        ComparedRow(f"p{place}", "a", "b", after - before)
        for place, (before, after) in enumerate(zip(old, new, strict=True))
    ]
    shares = sum(old) / len(old), sum(new) / len(new)
    return VersionComparison("old", "new", "exact match", *shares, gap, 2.0, 2.0, 0, rows)


def test_better_version_is_found_and_nothing_became_worse():
    found = compared([0.0] * 40, [1.0] * 40)
    assert verdict(found) == "better"
    assert headline(found).startswith("new is better than old: +100.0 points (")
    assert found.regressions(3) == []


def test_equal_answers_are_undecided_and_not_worse_by_a_margin():
    found = compared([1.0] * 100, [1.0] * 100)
    assert (verdict(found), verdict(found, margin=0.05)) == ("undecided", "not worse")
    assert "by 5.0 points or more" in headline(found, 0.05)


def test_worst_prompts_come_first():
    found = compared([1.0] * 40, [1.0] * 37 + [0.5, 0.0, 0.5])
    assert [row.prompt for row in found.regressions(2)] == ["p38", "p37"]
    assert verdict(replace(found, difference=difference([0.0] * 40, [1.0] * 40, range(40)))) == "worse"


@pytest.fixture
def folders(tmp_path, recipe, tiny_base, monkeypatch):
    """Two trained folders, and rows.jsonl, in the working folder."""
    for name, value in (("MODEL", str(tiny_base)), ("DEVICE", "cpu"), ("NATIVE", "false")):
        monkeypatch.setenv(f"LORA_ROUTER_{name}", value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    old = train(recipe, tmp_path / "adapters" / "colours", work=tmp_path, device="cpu")
    shutil.copytree(old, tmp_path / "new")
    return ["colours@1.0.0", "new"]


def test_folders_answer_in_this_process(folders, capsys):
    capsys.readouterr()
    line = ["compare", *folders, "--data", "rows.jsonl", "--metric", "exact_match"]
    assert run([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["difference"]["rows"], found["difference"]["mean"]) == (24, 0.0)
    assert found["changes"] == [0.0] * 24  # by row
    assert run(line) == 0
    assert "No difference is shown between new and colours@1.0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["a", "a", "--metric", "chrf"], "against itself"),
        (["a", "b", "--metric", "exact"], "--metric 'exact' is not known here; did you mean 'exact_match'?"),
        (["a", "b", "--metric", "chrf"], "rows.jsonl cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(capsys, monkeypatch, tmp_path, line, message):
    monkeypatch.chdir(tmp_path)
    assert run(["compare", *line, "--data", "rows.jsonl"]) == 2
    assert message in capsys.readouterr().err
