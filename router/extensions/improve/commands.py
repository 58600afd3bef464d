"""`lora-router adapters improve NAME`."""

from __future__ import annotations

import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.client import Client

NO_BETTER, TOO_FEW = 3, 4  # exit codes
# Where `adapters evaluate` looks for recipes by default, and a folder beside those of `adapters train`.
RECIPES, RUNS = Path("recipes"), Path("runs/improve")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter that is to become better.")]
Feedback = Annotated[
    Path | None,
    typer.Option("--feedback", metavar="FILE", help="JSON lines with feedback. Default: the server's."),
]
Share = Annotated[
    float, typer.Option("--canary", metavar="SHARE", min=0.0, max=0.5, help="Of the users; 0: no experiment.")
]
Promote = Annotated[bool, typer.Option("--promote", help="A version that won its canary serves all users.")]
Status = Annotated[bool, typer.Option("--status", help="Show the runs, and do nothing.")]


def improve(
    name: Name,
    feedback: Feedback = None,
    canary: Share = 0.1,
    promote: Promote = False,
    status: Status = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Make an adapter better by what users said of its answers.

    Reads feedback, trains a new version, and compares it on rows that were held out. A better version is put
    before a share of the users; their verdict decides. After Ctrl-C the same command goes on. Exit code 3:
    no better, 4: too few rows.

    \b
    Examples:
      lora-router adapters improve medical
      lora-router adapters improve medical --promote
      lora-router adapters improve medical --status
    """
    from router.cli.connect import connected
    from router.extensions.improve import state, words
    from router.extensions.improve.run import Improvement, ImproveRequest

    if status:
        _show(name, json)
        return
    request = ImproveRequest(name, _adapters_folder(), RECIPES, RUNS, feedback, canary, promote)

    def connect() -> AbstractContextManager[Client]:
        return connected(server, timeout)

    def say(text: str) -> None:
        print(text, file=sys.stderr if json else sys.stdout, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C
    try:
        run = Improvement(request, connect, say).run()
    except KeyboardInterrupt:
        say(f"\nstopped; go on with: lora-router adapters improve {name}")
        raise
    if json:
        _show(name, json)
    else:
        print(f"\n{words.headline(run)}\n{words.advice(run)}")
    codes = {state.Result.NO_BETTER: NO_BETTER, state.Result.TOO_FEW: TOO_FEW}
    if code := codes.get(run.result):
        raise typer.Exit(code)


def _adapters_folder() -> Path:
    from router.cli.settings import load_settings

    places = [place for place in load_settings().adapters_dir if isinstance(place, Path)]
    return places[0] if places else Path("adapters")


def _show(name: str, json: bool) -> None:
    """All runs of an adapter."""
    from router.cli.output import print_json
    from router.extensions.improve import state, words

    runs = [folder.run for folder in state.runs_of(RUNS, name)]
    if json:
        print_json(runs)
    elif not runs:
        print(f"{name} has no runs in {RUNS}")
    else:
        lines = [f"run {run.number}, verdict {run.verdict or '–'}: {words.headline(run)}" for run in runs]
        print(*lines, words.advice(runs[-1]), sep="\n")
