"""The run for a card takes its whole way without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_place import Place
from benchmarks.gpu_stages import STAGES


def rehearsed(stage: str, folder: Path) -> Place:
    place = Place(torch.device("cpu"), folder / "found.json", rehearsed=True)
    with place.runner:
        STAGES[stage](place)
    assert json.loads(place.out.read_text())["rows"] == place.rows
    return place


def test_every_stage_is_planned_once_within_the_time() -> None:
    assert [stage.name for stage in gpu.STAGES] == list(STAGES)
    assert sum(stage.minutes for stage in gpu.STAGES) <= gpu.MINUTES


@pytest.mark.parametrize("stage", ["card", "operations"])
def test_a_stage_is_rehearsed(stage: str, tmp_path: Path) -> None:
    place = rehearsed(stage, tmp_path)
    assert place.rows
    assert not place.failed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["step", "peers", "limits"])
def test_a_stage_with_an_engine_is_rehearsed(stage: str, tmp_path: Path) -> None:
    place = rehearsed(stage, tmp_path)
    assert place.rows
    assert not place.failed


def test_without_a_card_the_run_ends_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    monkeypatch.setattr(gpu.report, "RESULTS", tmp_path)
    assert gpu.main(["--only", "card", "operations"]) == 1
    shown = capsys.readouterr().out
    assert "sees no CUDA device" in shown
    assert "the stages after it do not run" in shown
    assert "failed" in (tmp_path / "gpu.md").read_text()
