"""The labelled requests in recipes/routing."""

from __future__ import annotations

import json
import runpy
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "recipes"
NAMES = {path.stem for path in ROOT.glob("*.toml")}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "routing" / name).read_text().splitlines()]


def test_every_label_often_enough_and_none_unknown() -> None:
    for name, least in (("calibration.jsonl", 60), ("dev.jsonl", 30)):
        counts = Counter(row["label"] for row in rows(name))
        assert set(counts) == NAMES | {""}
        assert min(counts.values()) >= least


def test_no_request_stands_on_two_sides() -> None:
    examples = {
        text
        for path in ROOT.glob("*.toml")
        for text in tomllib.loads(path.read_text())["routing"]["examples"]
    }
    sides = [examples, *({row["text"] for row in rows(f"{name}.jsonl")} for name in ("calibration", "dev"))]
    sides += [
        {r["text"] for r in rows("ood.jsonl") if r["split"] == s} for s in ("calibration", "evaluation")
    ]
    for i, one in enumerate(sides):
        for other in sides[i + 1 :]:
            assert not one & other


@pytest.mark.parametrize(("name", "split"), [("calibration", "train"), ("dev", "valid")])
def test_the_files_are_what_compose_makes(name: str, split: str) -> None:
    compose = runpy.run_path(str(ROOT / "routing" / "compose.py"))
    parts = compose["read_parts"](ROOT / "routing" / "parts" / f"{name}.txt")
    made = dict.fromkeys(text for text, _, _ in compose["rows"](parts, split))
    assert list(made) == [row["text"] for row in rows(f"{name}.jsonl")]
