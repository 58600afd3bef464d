"""Evaluation: report cards of adapters on data they were not trained on (extra: [train])."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from router.errors import ConfigError

__all__ = ["evaluate"]


def evaluate(
    folders: Sequence[Path],
    *,
    recipes: Path = Path("recipes"),
    rows: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure adapters against their base; write report.json and REPORT.md into each folder.

    The recipe (`recipes`/NAME.toml, or NAME/recipe.toml) says what to ask and how to judge. `rows` limits the test rows
    (drawn by a fixed seed). Raises ConfigError (no recipe, bad data), AdapterRejected (other base).
    """
    try:
        from router.evaluation.run import evaluate_folder
    except ModuleNotFoundError as error:
        if error.name not in ("sacrebleu", "rouge_score"):
            raise
        raise ConfigError(f"evaluation needs {error.name}: pip install 'lora-router[train]'") from error
    from router.evaluation.recipes import find_recipe
    from router.evaluation.subject import read_manifest

    named = [(folder, find_recipe(recipes, read_manifest(folder).name)) for folder in folders]
    return [evaluate_folder(folder, recipe, rows, device, say) for folder, recipe in named]
