"""The labelled requests in recipes/routing."""

from __future__ import annotations

import json
import re
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


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "routing" / "compose.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calibration", "dev"])
def test_the_files_are_what_compose_makes(compose: dict[str, Any], name: str) -> None:
    made = dict.fromkeys(compose["composed"](name))
    assert list(made) == [(row["text"], row["label"], row["source"]) for row in rows(f"{name}.jsonl")]


def test_nothing_is_lent_twice_by_a_lender_that_avoids_what_was_lent(compose: dict[str, Any]) -> None:
    first = compose["Lender"]("train")
    lent = first.texts("qa", 24, key="prompt")
    assert first.texts("qa", 24, key="prompt") == lent
    second = compose["Lender"]("train", avoid=first.used, used=first.used)
    before = set(first.used)
    lent += second.texts("qa", 24, key="prompt")
    lent += second.texts("qa", 6, key="prompt")
    passages = [text.split("Question: ")[0] for text in lent]
    assert not set(passages[:24]) & set(passages[24:48])
    assert not set(passages[:48]) & set(passages[48:])
    assert before < second.used


def test_counts_in_the_readme() -> None:
    text = (ROOT / "routing" / "README.md").read_text()
    for name in ("calibration", "dev", "ood"):
        assert re.search(rf"^\| `{name}\.jsonl` \|.*\| {len(rows(f'{name}.jsonl'))} \|$", text, re.M)
