"""Data need: the score after training on a part of the data, as `adapters learning-curve` measured it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.evaluation.scoring import METRICS
from router.evaluation.subject import Subject
from router.training.recipe import Recipe

FILE = "data_need.json"
SCHEMA = 1
COMMAND = "lora-router adapters learning-curve RECIPE"


def measure(subject: Subject, recipe: Recipe, full: Mapping[str, float], asked: int) -> dict[str, Any]:
    """The learning curve from the adapter's folder, with the whole adapter as its last point.

    `full` is the adapter's score on `asked` test rows, {"value", "low", "high"}.

    Returns {"metric", "digits", "points": [{"fraction", "rows", "steps", "asked", "score"}], "date"}, or
    {"missing": COMMAND} if the curve was not measured yet. Raises ConfigError as `load` does.
    """
    curve = load(subject, recipe)
    if curve is None:
        return {"missing": COMMAND}
    whole = {"rows": curve["data"]["rows"], "steps": recipe.train.steps, "asked": asked, "score": dict(full)}
    names = ("fraction", "rows", "steps", "asked", "score")
    points = [{name: point[name] for name in names} for point in curve["points"]]
    return {
        "metric": METRICS[recipe.evaluation.metric].title,
        "digits": METRICS[recipe.evaluation.metric].digits,
        "points": [*points, {"fraction": 1.0, **whole}],
        "date": max(point["machine"]["date"] for point in curve["points"]),
    }


def load(subject: Subject, recipe: Recipe) -> dict[str, Any] | None:
    """The contents of data_need.json, None if it is not there.

    Raises ConfigError if it cannot be read, or was measured on another base, on other data or with other
    settings than the recipe's: then it says nothing about this adapter.
    """
    file = subject.folder / FILE
    if not file.is_file():
        return None
    again = f"measure it again: {COMMAND}"
    try:
        curve: dict[str, Any] = json.loads(file.read_bytes())
        digest, data, settings = curve["base"]["digest"], curve["data"], curve["settings"]
        known = curve["schema"] == SCHEMA and curve["points"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not what adapters learning-curve writes ({error}); {again}") from error
    if not known:
        raise ConfigError(f"{file} is of another version or holds no point; {again}")
    if digest != subject.base.digest:
        raise ConfigError(f"{file} was measured on another base ({curve['base'].get('model')}); {again}")
    if changed := [name for name, sha256 in data_hashes(recipe).items() if data.get(name) != sha256]:
        raise ConfigError(f"{file} was measured on other data ({', '.join(changed)} differs); {again}")
    if changed := _differences(settings, settings_of(recipe)):
        raise ConfigError(f"{file} was measured with other settings ({', '.join(changed)}); {again}")
    return curve


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """sha256 of each split's file."""
    files: dict[str, Path] = {name: getattr(recipe.data, name) for name in ("train", "valid", "test")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What decides weights and answers, apart from base and data: as JSON would give it back."""
    tables = {name: getattr(recipe, name).model_dump(mode="json") for name in ("lora", "train", "prompt")}
    tables["generation"] = recipe.generation.model_dump(mode="json")
    tables["data"] = {"max_tokens": recipe.data.max_tokens, "fraction": recipe.data.fraction}
    tables["evaluation"] = {"metric": recipe.evaluation.metric}
    return tables


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that stand in both with other values: a setting that is new since has its default."""
    return [
        f"{table}.{name}"
        for table, values in then.items()
        for name, value in values.items()
        if name in now.get(table, {}) and now[table][name] != value
    ]


def markdown(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    if "missing" in section:
        return [f"Data need: not measured; `{section['missing']}` does."]
    digits = section["digits"]
    lines = [
        f"Data need: {section['metric']} on test rows after training on a part of the training rows, with",
        "the steps cut in proportion and all else equal:",
        "",
        "| part | training rows | steps | test rows | score |",
        "|---|---|---|---|---|",
    ]
    for point in section["points"]:
        score = point["score"]
        low, high = (f"{score[name]:.{digits}f}" for name in ("low", "high"))
        cells = (f"{point['fraction']:.0%}", point["rows"], point["steps"], point["asked"])
        lines.append(f"| {' | '.join(map(str, cells))} | {score['value']:.{digits}f} [{low}, {high}] |")
    return lines
