"""The recipe of a next version."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.errors import ConfigError
from router.extensions.improve.recipes import find_recipe, write_recipe
from router.extensions.training.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def test_next_recipe_is_the_same_but_for_rows_start_and_training(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "response": "r"}\n')
    (tmp_path / "adapter_model.safetensors").touch()
    file, steps = write_recipe(
        tmp_path,
        find_recipe(RECIPES, "medical"),
        version="1.1.0",
        start=tmp_path,
        train=rows,
        valid=rows,
        rows=160,
        about='more "rows" \x7f \\ ü',
    )
    made, before = load_recipe(file), load_recipe(RECIPES / "medical.toml")
    assert (made.adapter.version, made.train.steps, steps) == ("1.1.0", 20, 20)
    assert made.adapter.description == 'more "rows" \x7f \\ ü'
    assert made.lora.start == tmp_path
    assert made.train.eval_every == steps
    assert made.data.test.samefile(before.data.test)
    assert (made.prompt, made.generation, made.routing) == (before.prompt, before.generation, before.routing)


def test_adapter_without_a_recipe_and_metric_that_compare_lacks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no recipe of medical: looked for"):
        find_recipe(tmp_path, "medical")
    with pytest.raises(ConfigError, match="not by execution"):
        find_recipe(RECIPES, "code")
