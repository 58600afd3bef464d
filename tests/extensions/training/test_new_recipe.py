"""From a CSV to an adapter folder on a tiny base."""

from __future__ import annotations

import csv
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.cli.main import run
from router.errors import ConfigError, FailedPrecondition, ResourceExhausted
from router.extensions.training.data import Example, load_splits
from router.extensions.training.evaluation.exam import find_recipe
from router.extensions.training.new_recipe import (
    RecipeRequest,
    default_system,
    guess_metric,
    new_recipe,
    recipe_toml,
)
from router.extensions.training.recipe import load_recipe
from router.extensions.training.rows import Columns, PromptPair, labels_of
from router.extensions.training.run import train
from tests.extensions.training.tiny import COLOURS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
]


def write_csv(path: Path, count: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "thing", "colour"])
        for place in range(count):
            writer.writerow([place, f'colour of "thing" {place}, please?', COLOURS[place % 3]])
        writer.writerow([count, "", "red"])
        writer.writerow([count, "long " * 400, "red"])
    return path


@pytest.fixture
def wish(tmp_path: Path, tiny_base: Path) -> RecipeRequest:
    return RecipeRequest(
        name="colours",
        data=write_csv(tmp_path / "things.csv", 90),
        folder=tmp_path / "colours",
        prompt_column="thing",
        response_column="colour",
        model=str(tiny_base),
        steps=4,
    )


@pytest.mark.slow
def test_a_csv_becomes_a_recipe_that_trains(wish: RecipeRequest, tmp_path: Path) -> None:
    said: list[str] = []
    path = new_recipe(wish, say=said.append)
    recipe = load_recipe(path)
    splits = load_splits(recipe.data)
    assert sum(map(len, (splits.train, splits.valid, splits.test))) == 90
    assert (recipe.adapter.name, recipe.adapter.version, recipe.train.steps) == ("colours", "1.0.0", 4)
    assert recipe.evaluation.metric == "exact_match"
    assert recipe.generation.choices == ("blue", "green", "red")
    assert recipe.prompt.system == "Answer with one of these and nothing else: blue, green, red."
    assert set(recipe.routing.examples) <= {row.prompt for row in splits.train}
    assert len(recipe.routing.examples) == len(splits.train)
    assert [line for line in said if not line.startswith("loading ")][:3] == [
        "things.csv: 92 rows; 'thing' asks, 'colour' answers",
        "left out: 1 without prompt or answer",
        "left out: 1 longer than 1024 tokens",
    ]
    folder = train(path, tmp_path / "adapters" / "colours", work=tmp_path / "runs", device="cpu")
    assert (folder / "adapter.toml").is_file()


def test_the_same_file_gives_the_same_folder(wish: RecipeRequest, tmp_path: Path) -> None:
    folders = [replace(wish, folder=tmp_path / name) for name in ("one", "other")]
    recipes = [new_recipe(asked, say=lambda _: None) for asked in folders]
    for name in ("recipe.toml", "data/train.jsonl", "data/test.jsonl"):
        one, other = ((recipe.parent / name).read_bytes() for recipe in recipes)
        assert one == other


def test_nothing_is_overwritten_unasked(wish: RecipeRequest) -> None:
    (wish.folder / "data").mkdir(parents=True)
    (wish.folder / "data" / "test.jsonl").write_text("mine")
    with pytest.raises(FailedPrecondition, match=r"test\.jsonl exists already.*--force"):
        new_recipe(wish)
    assert (wish.folder / "data" / "test.jsonl").read_text() == "mine"
    new_recipe(replace(wish, force=True))
    assert (wish.folder / "data" / "test.jsonl").read_text() != "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "No Name"}, "'No Name' is no adapter name: 1 to 63"),
        ({"prompt_column": ""}, "say --prompt-column"),
        ({"group_column": "colour"}, "must be different columns"),
    ],
)
def test_wishes_that_cannot_be_met(wish: RecipeRequest, change: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        new_recipe(replace(wish, **change))
    assert said in caught.value.message
    assert not wish.folder.exists()


def test_too_few_rows(wish: RecipeRequest) -> None:
    write_csv(wish.data, 30)
    with pytest.raises(ConfigError, match=r"things\.csv has 31 usable rows of 32; 50 are needed at least"):
        new_recipe(wish)
    assert not wish.folder.exists()


def test_a_full_disk_leaves_no_recipe(wish: RecipeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("router.registry.state.os.fsync", no_space)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        new_recipe(wish)
    assert [path for path in wish.folder.rglob("*") if path.is_file()] == []


def test_the_command_says_what_comes_next(
    wish: RecipeRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_ROUTER_MODEL", wish.model)
    said = ["--prompt-column", "thing", "--response-column", "colour", "--steps", "3"]
    code = run(["adapters", "new", "colours", "--data", str(wish.data), "-o", str(wish.folder), *said])
    assert code == 0
    assert f"lora-router adapters train {wish.folder}/recipe.toml" in capsys.readouterr().out
    assert load_recipe(wish.folder / "recipe.toml").train.steps == 3
    assert load_recipe(wish.folder / "recipe.toml").base.model == wish.model


def test_its_recipe_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no recipe of x: looked for recipes/x\.toml, recipes/x/recipe\.toml"
    ):
        find_recipe(Path("recipes"), "x")
    for place in (Path("x/recipe.toml"), Path("recipes/x/recipe.toml"), Path("recipes/x.toml")):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        assert find_recipe(Path("recipes"), "x") == place


def test_a_second_version_has_a_recipe_of_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "x.toml", tmp_path / "x-second.toml"
    first.touch()
    assert find_recipe(tmp_path, "x", "x-second") == first
    second.touch()
    assert find_recipe(tmp_path, "x", "x-second") == second
    assert find_recipe(tmp_path, "x", "y-second") == first


def test_one_answer_for_all_rows_is_refused(wish: RecipeRequest) -> None:
    rows = [f'{n},"thing {n}",red' for n in range(60)]
    wish.data.write_text("\n".join(["number,thing,colour", *rows]))
    with pytest.raises(ConfigError, match=r"every row has the answer 'red'.*--response-column"):
        new_recipe(wish, say=lambda _: None)
    assert not wish.folder.exists()


# -- the numbers of a recipe


def recipe_of(
    train: list[PromptPair], encoded: list[Example], labels: tuple[str, ...], steps: int = 0
) -> dict[str, Any]:
    request = RecipeRequest("a", Path("a.csv"), Path("a"), steps=steps)
    return tomllib.loads(recipe_toml(request, "", labels, {"train": train}, encoded))


def pairs(count: int, groups: int = 0) -> list[PromptPair]:
    return [PromptPair(f"q{n}", f"a{n % 4}", f"g{n % groups}" if groups else f"q{n}") for n in range(count)]


@pytest.mark.parametrize(
    ("answers", "labels", "metric"),
    [
        (["b", "a", "a", "a", "b", "a", "a", "b"] * 5, ("a", "b"), "exact_match"),
        ([f"name {n}" for n in range(40)], (), "token_f1"),
        ([f"{n} " + "word " * 30 for n in range(40)], (), "rouge_l"),
        (["a much too long label of nine words indeed"] * 40, (), "token_f1"),
    ],
)
def test_the_metric_follows_the_answers(answers: list[str], labels: tuple[str, ...], metric: str) -> None:
    train = [PromptPair(str(n), answer.strip(), str(n)) for n, answer in enumerate(answers)]
    assert labels_of(train) == labels
    assert guess_metric(train, labels) == metric


def test_system_text() -> None:
    assert default_system(("b", "a"), Columns("x", "y")) == "Answer with one of these and nothing else: a, b."
    assert default_system((), Columns("job_title", "Team")) == "Given the job title, answer with the team."
    assert default_system((), Columns("question", "answer")) == ""


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(60, 8, 30), (300, 16, 57), (3000, 16, 188), (20_000, 16, 400)]
)
def test_steps_grow_with_the_data(count: int, batch: int, steps: int) -> None:
    train = pairs(count)
    examples = [Example((1,) * 20, (2,) * 3), Example((1,) * 5, (2,) * 9)]
    made = recipe_of(train, examples, labels_of(train))
    assert (made["train"]["batch"], made["train"]["steps"]) == (batch, steps)
    assert (made["data"]["max_tokens"], made["generation"]["max_tokens"]) == (23, 13)
    assert made["routing"]["examples"][:4] == ["q0", "q1", "q2", "q3"]
    assert len(made["routing"]["examples"]) == min(count, 128)


def test_long_prompts_are_no_routing_examples() -> None:
    train = [PromptPair("long " * 200, "a", ""), *pairs(20)]
    made = recipe_of(train, [Example((1,), (2,))], (), 7)
    assert made["routing"]["examples"][0] == "q0"
    assert (made["train"]["steps"], made["evaluation"]["metric"]) == (7, "token_f1")
