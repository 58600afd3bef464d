"""Evaluation: report cards of adapters on data they were not trained on (extra: [train]).

`exam` finds adapters, recipes and data, and asks the questions (`subject` is the adapter on its base, and the
engine that answers); `metrics` judge. `run` adds the sections (`generalization`, `bias`), and `report` shows
them. `versions` compares two adapters on a user's own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from router.errors import ConfigError, install_extra

__all__ = ["evaluate"]

PACKAGES = ("sacrebleu", "rouge_score", "jinja2")  # of the extra [train]


def evaluate(
    names: Sequence[str | Path],
    *,
    adapters: Path = Path("adapters"),
    recipes: Path = Path("recipes"),
    rows: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure adapters against their base; write report.json and REPORT.md into each folder.

    `names` are names of adapters in `adapters`, or folders. The recipe
    (`recipes`/NAME.toml, or NAME/recipe.toml) says what to ask and how to judge. `rows` limits the test rows
    (drawn by a fixed seed). All adapters and data are checked before the base is loaded, once for all.

    Raises ConfigError (no such adapter, no recipe, bad data), AdapterRejected (other base).
    """
    require_extra("evaluation")
    from router.extensions.training.evaluation.exam import find_candidate, make_plan
    from router.extensions.training.evaluation.run import evaluate_all

    candidates = [find_candidate(str(name), adapters) for name in dict.fromkeys(names)]
    plans = [make_plan(candidate, recipes) for candidate in candidates]
    return evaluate_all(plans, recipes, rows, device, say)


def require_extra(what: str) -> None:
    """Import the extra's packages. Raises ConfigError where one is missing: no long run must end for it."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise ConfigError(f"{what} needs {package}: {install_extra('train')}") from error
