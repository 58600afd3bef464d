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
Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME...", help="Adapters in the adapters folder, or folders.")
]
All = Annotated[bool, typer.Option("--all", help="All adapters that have a recipe.")]
Adapters = Annotated[Path, typer.Option("--adapters-dir", metavar="DIR", help="Where adapters are.")]
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
    names: Names = None,
    all_: All = False,
    adapters: Adapters = Path("adapters"),
    recipes: Recipes = Path("recipes"),
    rows: Rows = None,
    device: Device = "auto",
    json: flags.Json = False,
) -> None:
    """Measure adapters against their base.

    On test data of their recipe, with the base alone and the base with worked examples beside them. Writes
    report.json and REPORT.md into each folder. The base is loaded once for all of them.

    \b
    Examples:
      lora-router adapters evaluate medical
      lora-router adapters evaluate medical ../mine/legal --rows 200
      lora-router adapters evaluate --all
    """
    from router.cli.output import print_json
    from router.cli.quiet import quiet
    from router.errors import ConfigError
    from router.evaluation import evaluate as run

    if bool(names) == all_:
        raise ConfigError("name the adapters to evaluate, or give --all" + (", not both" if all_ else ""))
    quiet()
    say = _say_on_stderr if json else print
    reports = run(names or None, adapters=adapters, recipes=recipes, rows=rows, device=device, say=say)
    if json:
        print_json(reports)


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)
