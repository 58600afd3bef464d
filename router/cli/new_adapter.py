"""`lora-router adapters new`: a recipe and its data out of a file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the adapter.")]
Data = Annotated[
    Path,
    typer.Option("--data", metavar="FILE", help="CSV, TSV, JSON lines or JSON; UTF-8.", show_default=False),
]
Prompt = Annotated[str, typer.Option("--prompt-column", metavar="COLUMN", help="What is asked.")]
Response = Annotated[str, typer.Option("--response-column", metavar="COLUMN", help="The right answer.")]
Group = Annotated[
    str, typer.Option("--group-column", metavar="COLUMN", help="Rows alike here go to the same split.")
]
Domain = Annotated[str, typer.Option("--domain", metavar="TEXT", help="Subject, such as medical.")]
Task = Annotated[str, typer.Option("--task", metavar="TEXT", help="Task, such as classification.")]
System = Annotated[str, typer.Option("--system", metavar="TEXT", help="Stands before every request.")]
Metric = Annotated[
    str,
    typer.Option("--metric", metavar="METRIC", help="exact_match, token_f1, rouge_l or chrf."),
]
Version = Annotated[str, typer.Option("--version", metavar="VERSION", help="Version of the adapter.")]
Model = Annotated[str, typer.Option("--model", metavar="MODEL", help="Base: a name, a folder or a hub id.")]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help="Training steps. Default: by the data.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder. Default: NAME.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Force = Annotated[bool, typer.Option("--force", help="Replace recipe and data that exist.")]


def new(
    name: Name,
    data: Data,
    prompt_column: Prompt = "",
    response_column: Response = "",
    group_column: Group = "",
    domain: Domain = "",
    task: Task = "",
    system: System = "",
    metric: Metric = "",
    version: Version = "1.0.0",
    model: Model = "smollm2-135m-instruct",
    steps: Steps = None,
    output: Output = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Make a training recipe out of a table of questions and answers.

    Drops empty and repeated rows, splits the rest, picks settings that fit, and says how long training takes.

    \b
    Example:
      lora-router adapters new support --data tickets.csv --prompt-column text --response-column team
    """
    from router.cli.quiet import quiet
    from router.training.new import Wish, new_recipe

    quiet()
    wish = Wish(
        name=name,
        data=data,
        folder=output or Path(name),
        prompt_column=prompt_column,
        response_column=response_column,
        group_column=group_column,
        domain=domain,
        task=task,
        system=system,
        metric=metric,
        version=version,
        model=model,
        steps=steps or 0,
        force=force,
    )
    recipe = new_recipe(wish, device=device)
    print(f"\nnext, after a look at it:\n  lora-router adapters train {recipe}")
