"""An adapter with a recipe, feedback on it, and commands that take no time."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from router.extensions.improve import run as runs

GAP = {"mean": 0.5, "low": 0.4, "high": 0.6, "p": 0.001, "rows": 40, "groups": 30}
NO_GAP = GAP | {"mean": 0.0, "low": -0.01, "high": 0.01, "p": 1.0}
RECIPE = """
[adapter]
name = "colours"
[data]
train = "train.jsonl"
valid = "valid.jsonl"
test = "test.jsonl"
[train]
steps = 6
batch = 4
"""
MANIFEST = '[adapter]\nname = "colours"\nversion = "{}"\n'


def write(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(place: int) -> dict[str, str]:
    return {"prompt": f"colour of thing {place}?", "response": "red"}


def record(place: int, **changes: Any) -> dict[str, Any]:
    asked = {"messages": [["user", f"shade of thing {place}?"]], "answer": "blue", "corrected": "red"}
    who = {"response_id": f"r{place}", "time": 100.0 + place, "tenant": "", "unit": f"user-{place}"}
    return {**who, "adapter": "colours", "version": "1.0.0", "verdict": "corrected", **asked, **changes}


class Commands:
    """Stands in for the processes of a run: notes what is called and leaves what each would leave."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []
        self.gap = GAP
        self.changes = [0.0] * 600  # of the scores of task rows
        self.interrupts = ""

    def __call__(self, line: list[str], *, shown: bool = False) -> str:
        if self.interrupts and self.interrupts in line:
            self.interrupts = ""
            raise KeyboardInterrupt
        self.called.append([*map(str, line)])
        if line[:2] == ["adapters", "train"]:
            folder = Path(line[line.index("--output") + 1])
            folder.mkdir(exist_ok=True)
            version = tomllib.loads(Path(line[2]).read_text())["adapter"]["version"]
            (folder / "adapter.toml").write_text(MANIFEST.format(version))
        if line[:2] == ["adapters", "evaluate"]:
            (Path(line[2]) / "report.json").write_text("{}")
        if line[:2] == ["adapters", "add"]:
            version = tomllib.loads((Path(line[2]) / "adapter.toml").read_text())["adapter"]["version"]
            place = Path(line[line.index("--adapters-dir") + 1]) / f"colours-{version}"
            place.mkdir()
            for name in ("adapter.toml", "report.json"):
                (place / name).write_text((Path(line[2]) / name).read_text())
        if line[0] == "compare":
            scores = {"old_score": 0, "new_score": 1, "difference": self.gap, "by_chance": GAP}
            return json.dumps(scores | {"changes": self.changes})
        return ""

    @property
    def compared(self) -> list[tuple[str, str]]:
        """The folder of the old version and the file of rows of each comparison."""
        found = [line for line in self.called if line[0] == "compare"]
        return [(Path(line[1]).name, Path(line[line.index("--data") + 1]).name) for line in found]

    @property
    def names(self) -> list[str]:
        return [line[0] if line[0] == "compare" else line[1] for line in self.called]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(runs, "run_command", made)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """recipes/, adapters/ and feedback.jsonl of one adapter."""
    recipes, adapter = tmp_path / "recipes", tmp_path / "adapters" / "colours"
    recipes.mkdir()
    adapter.mkdir(parents=True)
    (recipes / "colours.toml").write_text(RECIPE)
    write(recipes / "train.jsonl", map(row, range(300)))
    write(recipes / "valid.jsonl", map(row, range(300, 600)))
    write(recipes / "test.jsonl", map(row, range(600, 900)))
    (adapter / "adapter.toml").write_text(MANIFEST.format("1.0.0"))
    write(tmp_path / "feedback.jsonl", map(record, range(120)))
    return tmp_path
