"""The recipe of a next version."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.extensions.improve.recipes import find_recipe, next_recipe, toml_text
from router.extensions.training.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def test_next_recipe_is_the_same_but_for_rows_start_and_training(tmp_path):
    source = find_recipe(RECIPES, "medical")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "response": "r"}\n')
    (tmp_path / "adapter_model.safetensors").touch()
    text, steps = next_recipe(
        source, version="1.1.0", start=tmp_path, train=rows, valid=rows, rows=160, about="more"
    )
    (tmp_path / "recipe.toml").write_text(text)
    made, before = load_recipe(tmp_path / "recipe.toml"), load_recipe(RECIPES / "medical.toml")
    assert (made.adapter.version, made.adapter.description, made.train.steps) == ("1.1.0", "more", steps)
    assert made.lora.start == tmp_path
    assert made.train.eval_every == steps
    assert (made.prompt, made.generation, made.routing) == (before.prompt, before.generation, before.routing)


def test_any_value_of_a_recipe_is_written_as_it_was_read():
    values = {"t": {"a": 'tab\t"quote" \x7f \\ ü', "b": [1, 2.5e-4, True], "c": {"x y": r"(\d+)"}, "d": []}}
    assert tomllib.loads(toml_text(values)) == values


def test_adapter_without_a_recipe_and_metric_that_compare_lacks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no recipe of medical: looked for"):
        find_recipe(tmp_path, "medical")
    with pytest.raises(ConfigError, match="not by execution"):
        find_recipe(RECIPES, "code")
