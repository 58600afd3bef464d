"""The recipe of an adapter, and one that trains its next version on."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.errors import ConfigError

METRICS = ("exact_match", "token_f1", "rouge_l", "chrf")  # that `lora-router compare` knows
EPOCHS = 2  # over the rows
RATE = 0.5  # of the recipe's learning rate: the weights are good already
OF_MODEL = ("adapter", "base", "prompt", "lora", "evaluation", "generation", "routing")


@dataclass(frozen=True, slots=True)
class SourceRecipe:
    """The recipe as it was written, and its files from here."""

    path: Path
    values: Mapping[str, Any]

    def file(self, split: str) -> Path:
        """The file of a split."""
        return self.path.parent / str(self.values["data"][split])

    @property
    def metric(self) -> str:
        """How answers are judged."""
        return str(self.values.get("evaluation", {}).get("metric", "exact_match"))

    @property
    def system(self) -> str:
        """The system text of its prompt."""
        return str(self.values.get("prompt", {}).get("system", ""))

    @property
    def choices(self) -> Sequence[str]:
        """Labels, where every answer is one."""
        return tuple(self.values.get("generation", {}).get("choices", ()))

    @property
    def answer_tokens(self) -> int:
        """The longest answer."""
        return int(self.values.get("generation", {}).get("max_tokens", 64))

    @property
    def batch(self) -> int:
        """Rows of a step."""
        return int(self.values["train"].get("batch", 16))


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
        steps = recipe.values["train"]["steps"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"recipe {path} is not usable: {error}") from error
    if missing or not isinstance(steps, int):
        raise ConfigError(f"recipe {path}: data.{missing[0] if missing else 'train'} is not there")
    if recipe.metric not in METRICS:
        raise ConfigError(f"recipe {path}: improve judges by {', '.join(METRICS)}, not by {recipe.metric}")
    return recipe


def next_recipe(
    source: SourceRecipe, *, version: str, start: Path, train: Path, valid: Path, rows: int, about: str
) -> tuple[str, int]:
    """The recipe's text for a version that starts from the weights in `start`, and its number of steps.

    `rows` are those of `train`. Weights are judged once, at the end: rows that decide must not choose.
    """
    steps = max(1, round(EPOCHS * rows / source.batch))
    values = {table: dict(source.values[table]) for table in OF_MODEL if table in source.values}
    values["adapter"] |= {"version": version, "description": about}
    values["lora"] = values.get("lora", {}) | {"start": str(start.resolve())}
    values["data"] = {
        "train": str(train.resolve()),
        "valid": str(valid.resolve()),
        "test": str(source.file("test").resolve()),
        "max_tokens": source.values["data"].get("max_tokens", 512),
    }
    rate = float(source.values["train"].get("learning_rate", 5e-4)) * RATE
    values["train"] = dict(source.values["train"]) | {
        "steps": steps,
        "eval_every": steps,
        "learning_rate": rate,
        "select": "loss",
    }
    return toml_text(values), steps


def next_version(version: str) -> str:
    """The next minor version.

    >>> next_version("1.0.0"), next_version("1.9.2"), next_version("2"), next_version("2024-a")
    ('1.1.0', '1.10.0', '2.1', '2024-a.1')
    """
    match = re.fullmatch(r"(\d+)\.(\d+)((?:\.\d+)*)", version)
    if match is None:
        return f"{version}.1"
    return f"{match[1]}.{int(match[2]) + 1}" + re.sub(r"\d+", "0", match[3])


def toml_text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables as TOML; a value may be a text, a number, a list, or a table of those."""
    return "\n".join("\n".join(_table(name, values)) + "\n" for name, values in tables.items())


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"[{name}]"
    for key, value in values.items():
        yield f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):  # a JSON string is a TOML string, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value).lower() if isinstance(value, bool) else repr(value)
