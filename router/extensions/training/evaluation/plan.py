"""What is to be evaluated: adapters found and their data checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.errors import ConfigError
from router.extensions.training.data import Splits, load_splits
from router.extensions.training.evaluation.metrics import check_rows
from router.extensions.training.evaluation.subject import read_manifest
from router.extensions.training.recipe import Recipe, load_recipe
from router.registry.format.manifest import Manifest
from router.registry.format.untrusted import nearest


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """One adapter with all that its evaluation needs but the base."""

    folder: Path
    manifest: Manifest
    recipe_file: Path
    recipe: Recipe
    splits: Splits


def make_plan(folder: Path, recipes: Path) -> EvaluationPlan:
    """Raises ConfigError (no adapter, no recipe, bad data), AdapterRejected (bad manifest)."""
    manifest = read_manifest(folder)
    recipe_file = find_recipe(recipes, manifest.name, folder.resolve().name)
    recipe = load_recipe(recipe_file)
    if recipe.adapter.name != manifest.name:
        raise ConfigError(f"{recipe_file} is the recipe of {recipe.adapter.name}, not of {manifest.name}")
    splits = load_splits(recipe.data)
    check_rows(recipe.evaluation.metric, splits.test)
    return EvaluationPlan(folder, manifest, recipe_file, recipe, splits)


def find_recipe(recipes: Path, name: str, folder: str = "") -> Path:
    """`recipes`/NAME.toml, else NAME/recipe.toml there or here, as `adapters new` writes it.

    A second version's, in a folder NAME-SOMETHING, is `recipes`/NAME-SOMETHING.toml.
    Raises ConfigError that lists the places where none was found.
    """
    places = [recipes / f"{name}.toml", recipes / name / "recipe.toml", Path(name) / "recipe.toml"]
    if folder.startswith(f"{name}-"):
        places.insert(0, recipes / f"{folder}.toml")
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise ConfigError(
        f"no recipe of {name}: looked for {looked}; name its folder with --recipes, or measure it on rows of "
        "your own with --data FILE --metric METRIC"
    )


def find_folder(asked: str, adapters: Path) -> Path:
    """A folder, or the adapter of that name. Raises ConfigError with the nearest known name."""
    for place in (Path(asked), adapters / asked):
        if (place / "adapter.toml").is_file():
            return place
    if Path(asked).is_dir():
        raise ConfigError(
            f"{asked} holds no adapter with a recipe: adapter.toml is not there; an adapter folder as PEFT "
            "saved it is measured on rows of your own with --data FILE --metric METRIC"
        )
    known = _names(adapters)
    hint = nearest(asked, known) or f"; there are: {', '.join(known) or 'none'}"
    raise ConfigError(f"no adapter {asked!r} in {adapters}{hint}")


def every_folder(adapters: Path, recipes: Path, say: Callable[[str], None]) -> list[Path]:
    """Adapters that have a recipe, by name; says which have none. Raises ConfigError if none has."""
    found, without = [], []
    for name in _names(adapters):
        manifest = read_manifest(adapters / name)
        try:
            find_recipe(recipes, manifest.name, name)
        except ConfigError:
            without.append(name)
        else:
            found.append(adapters / name)
    if not found:
        raise ConfigError(f"no adapter in {adapters} has a recipe in {recipes}: train one first")
    if without:
        say(f"without a recipe, not evaluated: {', '.join(without)}")
    return found


def _names(adapters: Path) -> Sequence[str]:
    return sorted(file.parent.name for file in adapters.glob("*/adapter.toml"))
