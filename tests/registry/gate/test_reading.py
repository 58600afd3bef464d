from __future__ import annotations

from pathlib import Path

import pytest

from router.registry.disk.places import report_stamp
from router.registry.format.folder import FolderError
from router.registry.gate.judging import Report
from router.registry.gate.weighing import read_report, weights_sha256
from tests.registry.gate.cards import hand_in, weights_of
from tests.registry.life import drop

SHIPPED = sorted(p.parent for p in (Path(__file__).parents[3] / "adapters").glob("*/report.json"))


def test_a_report_a_problem_or_nothing(tmp_path: Path) -> None:
    folder = drop(tmp_path, "m")
    assert read_report(folder) is None
    hand_in(folder)
    assert isinstance(read_report(folder), Report)
    (folder / "report.json").write_text("{")
    assert str(read_report(folder)).startswith("not JSON")
    assert read_report(tmp_path / "gone") == "not a readable folder: No such file or directory"


def test_weights_are_those_that_a_load_would_read(tmp_path: Path) -> None:
    folder = drop(tmp_path, "m")
    assert weights_sha256(folder) == weights_of(folder)
    inner = drop(tmp_path / "nested", "default", value=2)  # as PEFT saves an adapter of another name
    assert weights_sha256(tmp_path / "nested") == weights_of(inner)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FolderError):
        weights_sha256(folder)


def test_a_report_is_watched_on_its_own(tmp_path: Path) -> None:
    folder = drop(tmp_path, "m")
    assert not report_stamp(folder).files
    hand_in(folder)
    first = report_stamp(folder)
    (folder / "report.json").write_text("another")
    assert first.files
    assert report_stamp(folder) != first


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_reports_of_shipped_adapters_are_about_their_weights(folder: Path) -> None:
    report = read_report(folder)
    assert isinstance(report, Report)
    assert report.weights_sha256 == weights_sha256(folder)
