"""`lora-router adapters new | train | evaluate | convert | improve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from router.cli import flags
from router.cli.adapter_folders import base_for
from router.cli.command import CliError

# -- flags of train and evaluate
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A training recipe, TOML.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Adapter folder. Default: adapters/NAME.")
]
Work = Annotated[Path, typer.Option("--work", metavar="DIR", help="Folder for checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Adapters in the adapters folder of the settings, or folders."),
]
Rows = Annotated[int | None, typer.Option("--rows", metavar="N", min=1, help="Most test rows. Default: all.")]

# -- flags of new
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the adapter.")]
NewData = Annotated[
    Path,
    typer.Option("--data", metavar="FILE", help="CSV, TSV, JSON lines or JSON; UTF-8.", show_default=False),
]
NewPrompt = Annotated[str, typer.Option("--prompt-column", metavar="COLUMN", help="What is asked.")]
NewResponse = Annotated[str, typer.Option("--response-column", metavar="COLUMN", help="The right answer.")]
Group = Annotated[
    str, typer.Option("--group-column", metavar="COLUMN", help="Rows alike here go to the same split.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help="Training steps. Default: by the data.")
]
NewOutput = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder. Default: NAME.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace recipe and data that exist.")]

# -- flags of convert
ConvertSource = Annotated[Path, typer.Argument(metavar="SRC", help="Adapter folder; it stays as it is.")]
ConvertTarget = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")]

# -- flags of improve
NO_BETTER = 3  # exit code
ImproveName = Annotated[str, typer.Argument(metavar="NAME", help="The adapter that is to become better.")]


def new(
    name: Name,
    data: NewData,
    prompt_column: NewPrompt = "",
    response_column: NewResponse = "",
    group_column: Group = "",
    steps: Steps = None,
    output: NewOutput = None,
    force: Force = False,
) -> None:
    """Make a training recipe from a table of prompts and answers.

    Drops empty and repeated rows, splits the rest, and picks settings that fit.

    \b
    Example:
      lora-router adapters new support --data tickets.csv --prompt-column text --response-column team
    """
    from router.cli.command import quiet_libraries
    from router.cli.settings import load_settings
    from router.extensions.training.new_recipe import RecipeRequest, new_recipe

    settings = load_settings()
    quiet_libraries()
    request = RecipeRequest(
        name=name,
        data=data,
        folder=output or Path(name),
        prompt_column=prompt_column,
        response_column=response_column,
        group_column=group_column,
        model=settings.model,
        steps=steps or 0,
        force=force,
    )
    recipe = new_recipe(request)
    print(f"\nnext, after a look at it:\n  lora-router adapters train {recipe}")


def train(
    recipe: Recipe,
    output: Output = None,
    resume: Resume = False,
    work: Work = Path("runs"),
) -> None:
    """Train an adapter by a recipe.

    Writes the adapter folder with manifest and probes; Ctrl-C keeps a checkpoint for --resume. The setting
    `device` says where.

    \b
    Example:
      lora-router adapters train recipes/medical.toml
    """
    from router.cli.command import quiet_libraries
    from router.cli.settings import load_settings
    from router.extensions.training.run import train as run

    settings = load_settings()
    quiet_libraries()
    folder = run(recipe, output, resume=resume, work=work, device=settings.device)
    print(f"{folder}\n\ncheck it:\n  lora-router adapters validate {folder}")


def evaluate(names: Names, rows: Rows = None, json: flags.Json = False) -> None:
    """Measure adapters against their base.

    On test data of their recipe, with the base alone and the base with worked examples beside them. Writes
    report.json and REPORT.md into each folder. The base is loaded once for all of them, by the settings
    `device` and `quantize`.

    \b
    Example:
      lora-router adapters evaluate medical ../mine/legal --rows 200
    """
    from router.cli.command import quiet_libraries
    from router.cli.output import print_json
    from router.cli.settings import load_settings
    from router.extensions.training.evaluation import evaluate as run

    settings = load_settings()
    quiet_libraries()
    adapters = next(iter(settings.adapters_dir), Path("adapters"))
    say = _say_on_stderr if json else print
    reports = run(names, adapters=adapters, rows=rows, device=settings.device, say=say)
    if json:
        print_json(reports)


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def convert(src: ConvertSource, dst: ConvertTarget) -> None:
    """Convert an adapter folder to one that can be served.

    Reads adapter_model.bin; leaves out a tokenizer with a new pad token, and whole matrices that equal the
    base's. What would change answers is refused.

    \b
    Example:
      lora-router adapters convert ~/trained/out adapters/support
    """
    from router.cli.base_files import find_base
    from router.cli.command import quiet_libraries
    from router.cli.settings import load_settings
    from router.errors import AdapterRejected
    from router.extensions.training.conversion import ConversionBase
    from router.extensions.training.conversion import convert as run
    from router.registry.format.artifact import FolderRules, validate_folder

    settings = load_settings()
    if dst.exists():
        raise CliError(f"{dst} exists already; name another folder, or remove it first")
    folder, base = find_base(settings.model), base_for(settings.model, [src])
    if folder is None or base is None:
        raise CliError("the base is not here yet: `lora-router models fetch` gets it")
    quiet_libraries()

    def check(made: Path) -> None:
        report = validate_folder(made, FolderRules(base, max_rank=settings.max_rank))
        if not report.ok:
            raise AdapterRejected(f"{src} cannot be served, converted either: {report.error}")

    for line in run(src, dst, ConversionBase(folder, base.vocab_size), check):
        print(line)
    print(f"{dst}\n\ncheck it:\n  lora-router adapters validate {dst}")


def improve(name: ImproveName, server: flags.Server = "", timeout: flags.Timeout = 30.0) -> None:
    """Train a better version of an adapter from feedback.

    Trains a version on the feedback that the server keeps, and compares it with the one that serves on rows
    that were held out. It stays in runs/improve/NAME/version. Exit code 3: no better.

    \b
    Example:
      lora-router adapters improve medical
    """
    from router.cli.command import quiet_libraries
    from router.cli.connect import connected
    from router.cli.settings import load_settings
    from router.extensions.training.evaluation import require_extra

    require_extra("improve")
    from router.extensions.training.improve import ImproveRequest
    from router.extensions.training.improve import improve as run

    settings = load_settings()
    quiet_libraries()
    os.nice(19)  # a server on this machine goes first
    adapters = next((place for place in settings.adapters_dir if isinstance(place, Path)), Path("adapters"))
    request = ImproveRequest(name, settings.model, settings.device, adapters)
    with connected(server, timeout) as client:
        if not run(request, client, print):
            raise typer.Exit(NO_BETTER)
