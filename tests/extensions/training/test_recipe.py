from __future__ import annotations

from pathlib import Path

import pytest

from router.errors import ConfigError
from router.extensions.training.recipe import load_recipe
from tests.extensions.training.tiny import recipe_text, write_data


@pytest.fixture
def write(tmp_path: Path):
    write_data(tmp_path)

    def written(old: str = "", new: str = "") -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe_text(Path("some/base")).replace(old, new))
        return path

    return written


def test_defaults_and_absolute_data(write) -> None:
    recipe = load_recipe(write())
    assert recipe.lora.alpha == 16
    assert recipe.adapter.version == "1.0.0"
    assert recipe.data.train.is_file()
    assert recipe.routing.examples[1] == "back\\slash"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rank = 4", "rnak = 4", "unknown key lora.rnak (did you mean lora.rank?)"),
        ("[lora]", "[loar]", "unknown key loar (did you mean lora?)"),
        ("seed = 3", "zzzz = 3", "unknown key train.zzzz (known: steps,"),
        ("steps = 6", "", "train.steps is missing"),
        ("rank = 4", "rank = 0", "lora.rank: Input should be greater than or equal to 1"),
        ("learning_rate = 0.02", "learning_rate = nan", "train.learning_rate"),
        ('name = "colours"', 'name = "../up"', "adapter.name: must be 1 to 63 of a-z"),
        ('system = "Name the colour."', 'template = "no place"', "prompt: template must contain {prompt}"),
        (
            'system = "Name the colour."',
            'template = "{prompt}{prompt}"',
            "has it again at character 9",
        ),
        (
            "[lora]",
            "[evaluation]\nparts = { kind = '(' }\n[lora]",
            "evaluation.parts.kind: must be a reg",
        ),
        ("[train]", "[train", "is not valid TOML"),
        ('test = "test.jsonl"', 'test = "nowhere.jsonl"', "data.test:"),
        ("[lora]", '[lora]\nstart = "../none"', "none holds no adapter_model.safetensors"),
    ],
)
def test_refusals_name_the_place(write, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(old, new))
    assert said in caught.value.message


def test_all_problems_at_once(write) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write("rank = 4\ndropout = 0.1", "rnak = 4\ndropout = 2"))
    assert "lora.rnak" in caught.value.message
    assert "lora.dropout" in caught.value.message


def test_what_is_not_said_is_as_in_the_recipe_that_it_is_like(write) -> None:
    first = load_recipe(path := write("", ""))
    second = path.with_name("colours-second.toml")
    second.write_text(f'like = "{path.name}"\n[adapter]\nversion = "2.0.0"\n[train]\nsteps = 3\n')
    expected = first.model_copy(
        update={
            "adapter": first.adapter.model_copy(update={"version": "2.0.0"}),
            "train": first.train.model_copy(update={"steps": 3}),
        }
    )
    assert load_recipe(second) == expected


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ('"third.toml"', "is like colours-second.toml itself"),
        ('"nowhere.toml"', "nowhere.toml is not there"),
        ('"../up.toml"', "must be the file name of another recipe beside it"),
        ('"colours-second.toml"', "must be the file name of another"),
        ("7", "must be the file name of another"),
    ],
)
def test_what_a_recipe_cannot_be_like(write, like: str, said: str) -> None:
    second = write("", "").with_name("colours-second.toml")
    second.with_name("third.toml").write_text('like = "colours-second.toml"\n')
    second.write_text(f"like = {like}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(second)
    assert said in caught.value.message


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="is not there"):
        load_recipe(Path("nowhere.toml"))
