"""`lora-router adapters train|evaluate`: a recipe into an adapter folder, and its report card."""

from __future__ import annotations

import sys
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
Folders = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Adapter folders.")]
Recipes = Annotated[Path, typer.Option("--recipes", metavar="DIR", help="Folder of NAME.toml recipes.")]
Rows = Annotated[int | None, typer.Option("--rows", metavar="N", min=1, help="Most test rows. Default: all.")]


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
    from router.cli.quiet import quiet
    from router.training import train as run

    quiet()
    folder = run(recipe, output, resume=resume, work=work, device=device)
    print(f"{folder}\n\ncheck it:\n  lora-router adapters validate {folder}")


def evaluate(
    folders: Folders,
    recipes: Recipes = Path("recipes"),
    rows: Rows = None,
    device: Device = "auto",
    json: flags.Json = False,
) -> None:
    """Measure adapters against their base.

    On test data of their recipe, with the base alone and the base with worked examples beside them. Writes
    report.json and REPORT.md into each folder.

    \b
    Example:
      lora-router adapters evaluate adapters/medical --rows 200
    """
    from router.cli.output import print_json
    from router.cli.quiet import quiet
    from router.evaluation import evaluate as run

    quiet()
    reports = run(folders, recipes=recipes, rows=rows, device=device, say=_say_on_stderr if json else print)
    if json:
        print_json(reports)


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)
