"""The recipes that ship: they parse, their data is there, and no split leaks into another."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.extensions.training.data import load_splits, read_rows, refuse_leaks
from router.extensions.training.recipe import load_recipe

ROOT = Path(__file__).parents[3] / "recipes"
DATA = sorted({path.name.split(".")[0] for path in (ROOT / "data").glob("*.train.jsonl.gz")})


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_and_data(path: Path) -> None:
    recipe = load_recipe(path)
    splits = load_splits(recipe.data)
    assert path.stem == recipe.adapter.name or path.stem.startswith(f"{recipe.adapter.name}-")
    assert min(len(splits.train), len(splits.valid), len(splits.test)) >= 70
    assert recipe.routing.examples


@pytest.mark.parametrize("name", DATA)
def test_splits_are_disjoint_and_named_in_the_notice(name: str) -> None:
    splits = {
        split: tuple(read_rows(ROOT / "data" / f"{name}.{split}.jsonl.gz"))
        for split in ("train", "valid", "test")
    }
    refuse_leaks(splits)
    assert f"## {name}" in (ROOT / "data" / "NOTICE").read_text()
