"""Any adapter folder on somebody's own rows, on a tiny base, up to what the gate makes of the report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from router.engine.base import BaseInfo
from router.errors import AdapterRejected, ConfigError
from router.extensions.training.evaluation import evaluate_rows
from router.extensions.training.evaluation.exam import find_candidate
from router.extensions.training.evaluation.own_rows import FEWEST, OwnRows
from router.extensions.training.evaluation.report import in_one_sentence, unclear_gains
from router.extensions.training.rows import Columns
from router.registry.folders import weights_sha256
from router.registry.format.manifest import read_report
from router.registry.gate import judge
from tests.extensions.training.tiny import COLOURS


def write_csv(path: Path, count: int = 24, header: tuple[str, str] = ("prompt", "response")) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(header)
        rows.writerows((f"colour of thing {place}?", COLOURS[place % 3]) for place in range(count))
    return path


@pytest.fixture
def bare(trained: Path, tmp_path: Path) -> Path:
    """A folder as PEFT saves it: no adapter.toml, no probes."""
    folder = tmp_path / "adapters" / "mine"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained / "adapters" / "colours" / name, folder)
    return folder


def measured(folder: str | Path, data: Path, trained: Path, **more: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    options = {"metric": "token_f1", "base": str(trained / "base"), "device": "cpu", **more}
    [report] = evaluate_rows([str(folder)], data=data, say=said.append, **options)
    return report, said


def test_a_bare_folder_gets_a_report_that_the_gate_reads(bare: Path, trained: Path, tmp_path: Path) -> None:
    report, said = measured(bare, write_csv(tmp_path / "own.csv"), trained)
    assert json.loads((bare / "report.json").read_text()) == report
    assert (report["adapter"]["name"], report["metric"]) == ("mine", "token F1")
    assert list(report["arms"]) == ["base", "adapter"]
    assert said[0] == "own.csv: 24 rows; 'prompt' asks, 'response' answers"
    read, weights = read_report(bare), weights_sha256(bare)
    assert not isinstance(read, str | None)
    base = BaseInfo("base", report["base"]["digest"], "", "", "cpu", 1, 1, {})
    judged = judge(read, weights, base)
    gain = report["gains"]["adapter - base"]["score"]
    assert judged.passed is (gain["low"] > 0)
    apart = report["arms"]["adapter"]["score"]["value"] - report["arms"]["base"]["score"]["value"]
    assert gain["value"] == pytest.approx(apart, abs=1e-5)
    text = (bare / "REPORT.md").read_text()
    assert f"**{in_one_sentence(report)}.**" in text
    assert "24 of 24 rows of `own.csv`" in text
    assert "Not known: whether it was trained on these rows" in text
    assert report["command"] in text


def test_a_trained_adapter_by_name_with_its_prompt(trained: Path, tmp_path: Path) -> None:
    place = tmp_path / "adapters" / "colours"
    shutil.copytree(trained / "adapters" / "colours", place)
    rows = [{"q": f"colour of thing {place}?", "a": COLOURS[place % 3]} for place in range(30)]
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"q": "nothing"}]))
    more = {"metric": "exact_match", "adapters": tmp_path / "adapters", "rows": 21}
    report, said = measured("colours", data, trained, prompt_column="q", response_column="a", **more)
    assert said[1] == "left out: 1 without prompt or answer"
    assert (report["data"]["rows"], report["data"]["asked"]) == (30, 21)
    assert report["arms"]["base"]["prompt_tokens"] > len("Name the colour.")
    assert (place / "report.json").is_file()


def test_versions_below_a_name(bare: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(bare, tmp_path / "adapters" / "both" / version)
    with pytest.raises(ConfigError, match=r"holds several versions, name one of them: .*both/1\.0\.0, "):
        find_candidate("both", tmp_path / "adapters")
    found = find_candidate("both/2.0.0", tmp_path / "adapters")
    assert (found.manifest.name, found.manifest.version) == ("both", "2.0.0")
    assert find_candidate("both@2.0.0", tmp_path / "adapters").folder == found.folder


def asked(data: Path, **more: Any) -> OwnRows:
    return OwnRows(**{"data": data, "metric": "exact_match", "base": "none", **more})


def refused(data: Path, match: str, **more: Any) -> None:
    with pytest.raises(ConfigError, match=match):
        asked(data, **more).read(lambda _: None)


def test_what_is_wrong_with_rows_is_said_before_the_base_is_loaded(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "own.csv", FEWEST - 1)
    refused(data, rf"own\.csv: {FEWEST - 1} usable rows are too few .*: {FEWEST} are needed at least")
    refused(write_csv(tmp_path / "none.csv", 0), r"none\.csv holds no row")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", r"empty\.csv is empty")
    refused(tmp_path / "gone.csv", r"gone\.csv cannot be read")
    data = write_csv(tmp_path / "own.csv", 30)
    refused(data, r"3 usable rows are too few", rows=3)
    columns = Columns("", "team")
    refused(data, r"--response-column 'team' is not in the data: the columns are", columns=columns)
    refused(
        data,
        r"--metric 'rouge' is not known here; did you mean 'rouge_l'\?; known: exact_match, ",
        metric="rouge",
    )
    refused(data, r"--metric 'execution' is not known here", metric="execution")
    assert len(asked(data).read(lambda _: None)) == 30


def test_what_is_wrong_with_a_folder_is_said_before_the_base_is_loaded(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no adapter folder 'mina', here or in .*; did you mean 'mine'\?"):
        find_candidate("mina", bare.parent)
    (bare / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterRejected, match=r"cannot be served: .*adapter_model\.safetensors is missing"):
        find_candidate("mine", bare.parent)


def told(value: float, low: float, high: float) -> list[str]:
    gain = {"value": value, "low": low, "high": high}
    return list(unclear_gains({"data": {"asked": 40}, "gains": {"adapter - base": {"score": gain}}}))


def test_a_gain_that_is_not_shown_says_how_many_rows_it_would_take() -> None:
    assert told(0.3, 0.1, 0.5) == []
    assert told(-0.1, -0.2, 0.0)[0].endswith("its interval does not exclude zero.")
    assert told(0.1, -0.1, 0.3)[0].endswith("a gain of this size takes about 161 rows.")
