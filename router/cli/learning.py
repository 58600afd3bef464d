"""`lora-router adapters train|evaluate`: a recipe into an adapter folder, and its report card."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FILE", help="Rows of your own (CSV, TSV, JSON lines): needs no recipe."),
]
Metric = Annotated[
    str,
    typer.Option("--metric", metavar="METRIC", help="With --data: exact_match, token_f1, rouge_l or chrf."),
]
Base = Annotated[
    str, typer.Option("--base", metavar="MODEL", help="With --data: the base. Default: the one served.")
]
Prompt = Annotated[str, typer.Option("--prompt-column", metavar="COLUMN", help="With --data: what is asked.")]
Response = Annotated[
    str, typer.Option("--response-column", metavar="COLUMN", help="With --data: the right answer.")
]
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
    data: Data = None,
    metric: Metric = "",
    base: Base = "",
    prompt_column: Prompt = "",
    response_column: Response = "",
    adapters: Adapters = Path("adapters"),
    recipes: Recipes = Path("recipes"),
    rows: Rows = None,
    device: Device = "auto",
    json: flags.Json = False,
) -> None:
    """Measure adapters against their base.

    On test data of their recipe, with the base alone and the base with worked examples beside them; or, with
    --data, any adapter folder on rows of your own. Writes report.json and REPORT.md into each folder. The
    base is loaded once for all of them.

    \b
    Examples:
      lora-router adapters evaluate medical
      lora-router adapters evaluate medical ../mine/legal --rows 200
      lora-router adapters evaluate --all
      lora-router adapters evaluate my-peft-folder --data tickets.csv --metric exact_match
    """
    from router.cli.output import print_json
    from router.cli.quiet import quiet

    own = {"metric": metric, "base": base, "prompt_column": prompt_column, "response_column": response_column}
    _check(names, all_, data, own)
    quiet()
    common: Any = {"adapters": adapters, "rows": rows, "device": device}
    common["say"] = _say_on_stderr if json else print
    if data is None:
        from router.evaluation import evaluate as run

        reports = run(names or None, recipes=recipes, **common)
    else:
        reports = _on_own_rows(names or [], data, own, common)
    if json:
        print_json(reports)


def _check(names: list[str] | None, all_: bool, data: Path | None, own: Mapping[str, str]) -> None:
    from router.errors import ConfigError

    if bool(names) == all_:
        raise ConfigError("name the adapters to evaluate, or give --all" + (", not both" if all_ else ""))
    if data is not None and all_:
        raise ConfigError("--data asks its rows of the adapters that are named, not of --all")
    if data is not None and not own["metric"]:
        raise ConfigError("--data needs --metric: exact_match, token_f1, rouge_l or chrf")
    if data is None and (stray := [name for name, value in own.items() if value]):
        raise ConfigError(f"--{stray[0].replace('_', '-')} goes with --data FILE; else the recipe says it")


def _on_own_rows(names: list[str], data: Path, own: Mapping[str, str], common: Any) -> list[dict[str, Any]]:
    from router.cli.settings import load_settings
    from router.evaluation import evaluate_rows

    options = {**common, **own, "base": own["base"] or load_settings().model}
    return evaluate_rows(names, data=data, **options)


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)
