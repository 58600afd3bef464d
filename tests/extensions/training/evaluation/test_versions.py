"""Two adapter folders on somebody's own rows, on a tiny base."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from router.errors import AdapterRejected, ConfigError
from router.extensions.training.evaluation.exam import find_candidate, ready_base
from router.extensions.training.evaluation.versions import FEWEST, compare_folders, read_rows
from router.extensions.training.rows import Columns, PromptPair
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


def test_bare_folder_is_compared_with_one_that_has_a_manifest(bare: Path, trained: Path) -> None:
    pairs = [PromptPair(f"colour of {place}?", COLOURS[place % 3], f"{place}") for place in range(24)]
    long = PromptPair("colour? " * 4000, "red", "long")
    one, other = (find_candidate(str(place), bare.parent) for place in (trained / "adapters/colours", bare))
    with ready_base(str(trained / "base"), "cpu") as ready:
        found = compare_folders(one, other, [*pairs, long], ready, "token_f1")
    assert (found.metric, found.difference.rows, found.left_out) == ("token F1", 24, 1)
    assert found.new_score - found.old_score == pytest.approx(found.difference.mean)
    assert [row.prompt for row in found.rows] == [pair.prompt for pair in pairs]


def test_versions_below_a_name(bare: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(bare, tmp_path / "adapters" / "both" / version)
    with pytest.raises(ConfigError, match=r"holds several versions, name one of them: .*both/1\.0\.0, "):
        find_candidate("both", tmp_path / "adapters")
    found = find_candidate("both/2.0.0", tmp_path / "adapters")
    assert (found.manifest.name, found.manifest.version) == ("both", "2.0.0")
    assert find_candidate("both@2.0.0", tmp_path / "adapters").folder == found.folder


@pytest.mark.parametrize(
    ("rows", "metric", "columns", "message"),
    [
        (FEWEST - 1, "chrf", ("", ""), rf"own\.csv: {FEWEST - 1} usable rows are too few .*: {FEWEST} are "),
        (0, "chrf", ("", ""), r"own\.csv holds no row"),
        (30, "chrf", ("", "team"), r"--response-column 'team' is not in the data: the columns are"),
        (
            30,
            "rouge",
            ("", ""),
            r"--metric 'rouge' is not known here; did you mean 'rouge_l'\?; known: ",
        ),
        (30, "execution", ("", ""), r"--metric 'execution' is not known here"),
    ],
)
def test_what_is_wrong_with_rows_is_said(
    tmp_path: Path, rows: int, metric: str, columns: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_rows(write_csv(tmp_path / "own.csv", rows), metric, Columns(*columns), lambda _: None)


def test_usable_rows_are_read(tmp_path: Path) -> None:
    assert len(read_rows(write_csv(tmp_path / "own.csv", 30), "chrf", Columns("", ""), lambda _: None)) == 30


def test_what_is_wrong_with_a_folder_is_said_before_the_base_is_loaded(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no adapter folder 'mina', here or in .*; did you mean 'mine'\?"):
        find_candidate("mina", bare.parent)
    (bare / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterRejected, match=r"cannot be served: .*adapter_model\.safetensors is missing"):
        find_candidate("mine", bare.parent)
