"""Where the recipe of an adapter stands."""

from __future__ import annotations

from pathlib import Path

from router.errors import ConfigError


def find_recipe(recipes: Path, name: str) -> Path:
    """`recipes`/NAME.toml, else NAME/recipe.toml there or here, as `adapters new` writes it.

    Raises ConfigError that lists the places where none was found.
    """
    places = (recipes / f"{name}.toml", recipes / name / "recipe.toml", Path(name) / "recipe.toml")
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise ConfigError(
        f"no recipe of {name}: looked for {looked}; name its folder with --recipes, or measure it on rows of "
        "your own with --data FILE --metric METRIC"
    )
