"""How much training data a shipped adapter needs: the section of a report out of data_need.json.

That file holds scores of the adapter trained on parts of its rows (`data.fraction` of the recipe).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.extensions.training.evaluation.metrics import METRICS
from router.extensions.training.evaluation.subject import EvaluationSubject
from router.extensions.training.recipe import Recipe

FILE = "data_need.json"
SCHEMA = 1
AGAIN = "measure it again, or remove the file"


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """sha256 of each split's file."""
    files: dict[str, Path] = {name: getattr(recipe.data, name) for name in ("train", "valid", "test")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What decides weights and answers, apart from base and data: as JSON would give it back."""
    tables = {name: getattr(recipe, name).model_dump(mode="json") for name in ("lora", "train", "prompt")}
    tables["generation"] = recipe.generation.given(mode="json")
    tables["data"] = {"max_tokens": recipe.data.max_tokens, "fraction": recipe.data.fraction}
    tables["evaluation"] = {"metric": recipe.evaluation.metric}
    return tables


def data_need(
    curve: Mapping[str, Any], recipe: Recipe, full: Mapping[str, float], row_count: int
) -> dict[str, Any]:
    """The section out of what `read_curve` returned, with the whole adapter as the last point.

    `full` is the adapter's score on `row_count` test rows, {"value", "low", "high"}. Returns {"metric",
    "digits", "points": [{"fraction", "rows", "steps", "asked", "score"}], "date"}, and "since": settings of
    answers that are newer than the curve.
    """
    whole = {
        "rows": curve["data"]["rows"],
        "steps": recipe.train.steps,
        "asked": row_count,
        "score": dict(full),
    }
    names = ("fraction", "rows", "steps", "asked", "score")
    points = [{name: point[name] for name in names} for point in curve["points"]]
    return {
        "metric": METRICS[recipe.evaluation.metric].title,
        "digits": METRICS[recipe.evaluation.metric].digits,
        "points": [*points, {"fraction": 1.0, **whole}],
        "date": max(point["machine"]["date"] for point in curve["points"]),
        **_since(curve["settings"], recipe),
    }


def _since(then: Mapping[str, Any], recipe: Recipe) -> dict[str, list[str]]:
    """Settings of answers that came after the curve was measured: {"since": [names]}, or nothing."""
    new = [name for name in recipe.generation.given() if name not in then["generation"]]
    return {"since": [f"generation.{name}" for name in new]} if new else {}


def read_curve(subject: EvaluationSubject, recipe: Recipe) -> dict[str, Any] | None:
    """The contents of data_need.json, None if it is not there.

    Raises ConfigError if it cannot be read, or was measured on another base, on other data or with other
    settings than the recipe's: then it says nothing about this adapter.
    """
    file = subject.folder / FILE
    if not file.is_file():
        return None
    try:
        curve: dict[str, Any] = json.loads(file.read_bytes())
        digest, data, settings = curve["base"]["digest"], curve["data"], curve["settings"]
        known = curve["schema"] == SCHEMA and curve["points"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); {AGAIN}") from error
    if not known:
        raise ConfigError(f"{file} is of another version or holds no point; {AGAIN}")
    if digest != subject.base.digest:
        raise ConfigError(f"{file} was measured on another base ({curve['base'].get('model')}); {AGAIN}")
    if changed := [name for name, sha256 in data_hashes(recipe).items() if data.get(name) != sha256]:
        raise ConfigError(f"{file} was measured on other data ({', '.join(changed)} differs); {AGAIN}")
    if changed := _differences(settings, settings_of(recipe)):
        raise ConfigError(f"{file} was measured with other settings ({', '.join(changed)}); {AGAIN}")
    return curve


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that stand in both with other values: a setting that is new since has its default."""
    return [
        f"{table}.{name}"
        for table, values in then.items()
        for name, value in values.items()
        if name in now.get(table, {}) and now[table][name] != value
    ]
