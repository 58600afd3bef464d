"""Rows of the held-out test are known by hashes, and nothing here repeats one."""

from __future__ import annotations

import gzip
import importlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
LEAST = 8  # runs of an adapter's test input: shorter ones are terms
ROW = "Which of the seven hills of Rome did the first settlers choose, and why?"


@pytest.fixture(scope="module")
def heldout() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES / "routing"))
        yield importlib.import_module("heldout")


def requests() -> Iterator[str]:
    """All that calibrates and checks routing, and all that its classifiers learn from."""
    for name in ("calibration", "dev", "ood"):
        for line in (RECIPES / "routing" / f"{name}.jsonl").read_text().splitlines():
            yield json.loads(line)["text"]
    for name in ("background", "strangers"):
        yield from (ROOT / "plugins" / f"{name}.txt").read_text().splitlines()
    for path in RECIPES.glob("*.toml"):
        routing = tomllib.loads(path.read_text(encoding="utf-8")).get("routing", {})
        yield from (*routing.get("examples", ()), *routing.get("negative_examples", ()))


def test_nothing_repeats_a_row_of_the_test(heldout: ModuleType) -> None:
    known = heldout.HeldOut.read()
    assert len(known) == 353
    assert not [text for text in requests() if known.repeated(text) >= heldout.REPEATED]


def test_nothing_nearly_is_a_test_input_of_an_adapter(heldout: ModuleType) -> None:
    records = [
        json.loads(line)
        for path in (RECIPES / "data").glob("*.test.jsonl.gz")
        for line in gzip.decompress(path.read_bytes()).decode().splitlines()
    ]
    rows = [heldout.runs(record.get("x") or record["prompt"]) for record in records]
    known = heldout.HeldOut(row for row in rows if len(row) >= LEAST)
    assert len(known) > 700
    assert not [text for text in requests() if known.repeated(text) >= 0.8]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (ROW, 1.0),
        (ROW.upper().replace(",", " -"), 1.0),
        (f"Answer in one sentence. {ROW} Thank you very much for your help.", 1.0),
        (ROW.replace("seven", "many"), 9 / 12),
        ("why?", 0.0),
        ("Which of the pills should I take?", 1 / 5),
        ("", 0.0),
    ],
)
def test_the_share_of_the_shorter_one_counts(heldout: ModuleType, text: str, share: float) -> None:
    known = heldout.HeldOut([heldout.runs("and why, of all"), heldout.runs(ROW)])
    assert known.repeated(text) == pytest.approx(share)


def test_what_is_written_is_read_again_and_has_no_word(heldout: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "heldout.txt"
    path.write_text("\n".join(heldout.written([ROW, "Hi", "\u4eca\u5929\u665a\u4e0a\u5403\u4ec0\u4e48"])))
    known = heldout.HeldOut.read(path)
    assert [known.repeated(text) for text in (ROW, "hi", "\u5929\u665a\u4e0a")] == [1.0, 1.0, 1.0]
    assert known.repeated("Where is the nearest settlement?") == 0.0
    assert "settlers" not in path.read_text()
