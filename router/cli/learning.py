"""`lora-router adapters train|evaluate`: a recipe into an adapter folder, and its report card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli import flags

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A training recipe, TOML.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Adapter folder. Default: adapters/NAME.")
]
Work = Annotated[Path, typer.Option("--work", metavar="DIR", help="Folder for checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]


def train(
    recipe: Recipe,
    output: Output = None,
    resume: Resume = False,
    work: Work = Path("runs"),
    device: Device = "auto",
) -> None:
    """Train an adapter by a recipe.

    Writes the adapter folder with manifest and probes; Ctrl-C keeps a checkpoint for --resume.

    \b
    Example:
      lora-router adapters train recipes/medical.toml
    """
    from router.training import train as run

    folder = run(recipe, output, resume=resume, work=work, device=device)
    print(f"{folder}\n\ncheck it:\n  lora-router adapters validate {folder}")


def evaluate(recipe: Recipe, json: flags.Json = False) -> None:
    """Evaluate."""
    raise NotImplementedError(recipe)
