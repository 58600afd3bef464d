"""The recipe of an adapter, and one that trains its next version."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.errors import ConfigError

METRICS = ("exact_match", "token_f1", "rouge_l", "chrf")  # that `lora-router compare` knows
EPOCHS = 2  # over the rows
RATE = 0.5  # of the recipe's learning rate: the weights are good already
SOURCE = "source.toml"  # the adapter's recipe, beside that of the next version


@dataclass(frozen=True, slots=True)
class SourceRecipe:
    """An adapter's recipe as it was written: its tables, and its files from here."""

    path: Path
    tables: Mapping[str, Mapping[str, Any]]

    def file(self, split: str) -> Path:
        """The file of train, valid or test."""
        return self.path.parent / str(self.tables["data"][split])

    def value(self, table: str, name: str, default: Any) -> Any:
        """What a table says, else `default`."""
        return self.tables.get(table, {}).get(name, default)

    @property
    def metric(self) -> str:
        """How answers are judged."""
        return str(self.value("evaluation", "metric", "exact_match"))


def find_recipe(recipes: Path, name: str) -> SourceRecipe:
    """`recipes`/NAME.toml, else NAME/recipe.toml there or here. Raises ConfigError naming what is missing."""
    places = [recipes / f"{name}.toml", recipes / name / "recipe.toml", Path(name) / "recipe.toml"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(map(str, places))
        raise ConfigError(f"no recipe of {name}: looked for {looked}; name its folder with --recipes")
    try:
        recipe = SourceRecipe(path, tomllib.loads(path.read_text(encoding="utf-8")))
        missing = [split for split in ("train", "valid", "test") if not recipe.file(split).is_file()]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"recipe {path} is not usable: {error!r}") from error
    if missing:
        raise ConfigError(f"recipe {path}: data.{missing[0]} is not there")
    if recipe.metric not in METRICS:
        raise ConfigError(f"recipe {path}: improve judges by {', '.join(METRICS)}, not by {recipe.metric}")
    return recipe


def write_recipe(
    folder: Path,
    source: SourceRecipe,
    *,
    version: str,
    start: Path,
    train: Path,
    valid: Path,
    rows: int,
    about: str,
) -> tuple[Path, int]:
    """Write the recipe of a version that starts from the weights in `start`; returns its file and its steps.

    It is like the one in `source`, which is copied beside it. `rows` are those of `train`. Weights are judged
    once, at the end: rows that decide must not choose.
    """
    steps = max(1, round(EPOCHS * rows / int(source.value("train", "batch", 16))))
    tables: dict[str, Mapping[str, Any]] = {
        "adapter": {"version": version, "description": about},
        "lora": {"start": str(start.resolve())},
        "data": {
            "train": str(train.resolve()),
            "valid": str(valid.resolve()),
            "test": str(source.file("test").resolve()),
            "fraction": 1.0,
        },
        "train": {
            "steps": steps,
            "eval_every": steps,
            "learning_rate": float(source.value("train", "learning_rate", 5e-4)) * RATE,
            "select": "loss",
        },
    }
    lines = [f'like = "{SOURCE}"']
    for name, values in tables.items():
        # A JSON string is a TOML string, but for DEL.
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (folder / SOURCE).write_bytes(source.path.read_bytes())
    made = folder / "recipe.toml"
    made.write_text("\n".join(lines).replace("\x7f", "\\u007F") + "\n", encoding="utf-8")
    return made, steps


def next_version(version: str) -> str:
    """The next minor version.

    >>> next_version("1.0.0"), next_version("1.9.2"), next_version("2"), next_version("2024-a")
    ('1.1.0', '1.10.0', '2.1', '2024-a.1')
    """
    match = re.fullmatch(r"(\d+)\.(\d+)((?:\.\d+)*)", version)
    if match is None:
        return f"{version}.1"
    return f"{match[1]}.{int(match[2]) + 1}" + re.sub(r"\d+", "0", match[3])
