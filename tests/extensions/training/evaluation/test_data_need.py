"""The section of a report out of data_need.json, and files that are about something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from router.errors import ConfigError
from router.extensions.training.base import load_base
from router.extensions.training.evaluation.data_need import FILE, data_hashes, data_need, read_curve
from router.extensions.training.evaluation.report import data_need_lines
from router.extensions.training.evaluation.subject import EvaluationSubject, load_subject, read_manifest
from router.extensions.training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.slow

FULL = {"value": 1.0, "low": 0.9, "high": 1.0}
Place = tuple[EvaluationSubject, Recipe, dict[str, Any]]


def point(fraction: float, rows: int) -> dict[str, Any]:
    return {
        "fraction": fraction,
        "rows": rows,
        "steps": 6,
        "asked": 9,
        "score": {"value": 0.5, "low": 0.4, "high": 0.6},
    }


def curve_of(subject: EvaluationSubject, recipe: Recipe) -> dict[str, Any]:
    """Two points, as data_need.json has them."""
    points = [point(0.25, 6), point(0.5, 12)]
    return {
        "base": subject.base.digest,
        "data": data_hashes(recipe),
        "date": "2026-12-02",
        "points": points,
    }


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Place:
    """A copy of a trained adapter, its recipe, and a curve of it."""
    folder = Path(shutil.copytree(trained / "adapters" / "colours", tmp_path / "colours"))
    recipe = load_recipe(trained / "recipes" / "colours.toml")
    subject = load_subject(folder, read_manifest(folder), load_base(recipe.base.model, "cpu"))
    return subject, recipe, curve_of(subject, recipe)


def written(place: Place) -> Path:
    file = place[0].folder / FILE
    file.write_text(json.dumps(place[2]))
    return file


def test_the_section_ends_with_the_whole_adapter(place: Place) -> None:
    subject, recipe, _ = place
    written(place)
    curve = read_curve(subject, recipe)
    assert curve is not None
    section = data_need(curve, recipe, FULL, 24, 9)
    found = [(one["fraction"], one["rows"]) for one in section["points"]]
    assert found == [(0.25, 6), (0.5, 12), (1.0, 24)]
    assert section["points"][-1]["score"] == FULL
    page = "\n".join(data_need_lines(section))
    assert "| 100% | 24 | 12 | 9 | 1.000 [0.900, 1.000] |" in page
    assert "exact match" in page


def test_without_a_file_there_is_no_curve(place: Place) -> None:
    assert read_curve(place[0], place[1]) is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("base",), "0" * 64, "on another base or other data"),
        (("data", "train"), "0" * 64, "on another base or other data"),
        (("points",), [], "cannot be read .*no point"),
        (("data",), None, "on another base or other data"),
    ],
)
def test_a_curve_of_something_else_is_refused(
    place: Place, path: tuple[str, ...], value: Any, said: str
) -> None:
    table = place[2]
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = value
    written(place)
    with pytest.raises(ConfigError, match=f"{said}.*measure it again"):
        read_curve(place[0], place[1])


def test_a_file_that_is_not_json_is_refused(place: Place) -> None:
    written(place).write_text("{")
    with pytest.raises(ConfigError, match="remove the file"):
        read_curve(place[0], place[1])
