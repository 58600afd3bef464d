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


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """sha256 of each split's file."""
    files: dict[str, Path] = {name: getattr(recipe.data, name) for name in ("train", "valid", "test")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def read_curve(subject: EvaluationSubject, recipe: Recipe) -> dict[str, Any] | None:
    """The contents of data_need.json, None if it is not there.

    Raises ConfigError if it cannot be read, or was measured on another base or on other data.
    """
    file = subject.folder / FILE
    if not file.is_file():
        return None
    try:
        curve: dict[str, Any] = json.loads(file.read_bytes())
        same = (curve["base"], curve["data"]) == (subject.base.digest, data_hashes(recipe))
        if not curve["points"]:
            raise ValueError("no point")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} cannot be read ({error!r}); measure it again, or remove the file"
        ) from error
    if not same:
        raise ConfigError(
            f"{file} was measured on another base or other data; measure it again, or remove it"
        )
    return curve


def data_need(
    curve: Mapping[str, Any], recipe: Recipe, full: Mapping[str, float], train_rows: int, asked: int
) -> dict[str, Any]:
    """The section out of what `read_curve` returned, with the whole adapter as the last point.

    `full` is its score on `asked` test rows, {"value", "low", "high"}. Returns {"metric", "digits",
    "points": [{"fraction", "rows", "steps", "asked", "score"}], "date"}.
    """
    whole = {
        "fraction": 1.0,
        "rows": train_rows,
        "steps": recipe.train.steps,
        "asked": asked,
        "score": dict(full),
    }
    metric = METRICS[recipe.evaluation.metric]
    points = [*curve["points"], whole]
    return {"metric": metric.title, "digits": metric.digits, "points": points, "date": curve["date"]}
