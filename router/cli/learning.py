"""`lora-router adapters train|evaluate`: a recipe into an adapter folder, and its report card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli import flags

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A training recipe, TOML.")]


def train(recipe: Recipe) -> None:
    """Train an adapter by a recipe."""
    raise NotImplementedError(recipe)


def evaluate(recipe: Recipe, json: flags.Json = False) -> None:
    """Evaluate."""
    raise NotImplementedError(recipe)
