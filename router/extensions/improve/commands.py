"""`lora-router adapters improve NAME`."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.extensions.improve.state import LEAST_ROWS

if TYPE_CHECKING:
    from router.client import Client
    from router.extensions.improve.state import Run

NO_BETTER, TOO_FEW = 3, 4  # exit codes
Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter that is to become better.")]
Feedback = Annotated[
    Path | None,
    typer.Option("--feedback", metavar="FILE", help="JSON lines with feedback. Default: the server's."),
]
Adapters = Annotated[
    Path | None,
    typer.Option("--adapters-dir", metavar="DIR", help="Default: the adapters folder of the settings."),
]
Recipes = Annotated[Path, typer.Option("--recipes", metavar="DIR", help="Folder of NAME.toml recipes.")]
Work = Annotated[Path, typer.Option("--work", metavar="DIR", help="Folder of the runs.")]
Least = Annotated[int, typer.Option("--least", metavar="N", min=1, help="Usable rows that a run takes.")]
Alpha = Annotated[
    float, typer.Option("--alpha", metavar="P", min=0.0, max=0.5, help="Chance of a false gain.")
]
Margin = Annotated[
    float, typer.Option("--margin", metavar="POINTS", min=0.0, help="Loss on old rows that is allowed.")
]
Share = Annotated[
    float, typer.Option("--canary", metavar="SHARE", min=0.0, max=0.5, help="Of the users; 0: no experiment.")
]
Metric = Annotated[str, typer.Option("--metric", metavar="NAME", help="Outcome that decides the canary.")]
Window = Annotated[
    str, typer.Option("--window", metavar="TIME", help="How long outcomes of a user count: 20s, 12h, 1d.")
]
Units = Annotated[int, typer.Option("--units", metavar="N", min=200, help="Users planned for the canary.")]
Promote = Annotated[
    str, typer.Option("--promote", metavar="auto|ask|no", help="What a won canary does at the next call.")
]
At = Annotated[str, typer.Option("--at", metavar="HH:MM", help="Train from this time of the day on.")]
Memory = Annotated[
    int, typer.Option("--memory-mb", metavar="N", min=512, help="Bound on each process of a run.")
]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=0, help="Default: all cores but one.")]
Fresh = Annotated[bool, typer.Option("--new", help="Begin a new run; leave an unfinished one.")]
Status = Annotated[bool, typer.Option("--status", help="Show the runs and the canary, and do nothing.")]
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def improve(
    name: Name,
    feedback: Feedback = None,
    adapters_dir: Adapters = None,
    recipes: Recipes = Path("recipes"),
    work: Work = Path("runs/improve"),
    least: Least = LEAST_ROWS,
    alpha: Alpha = 0.05,
    margin: Margin = 1.0,
    canary: Share = 0.1,
    metric: Metric = "feedback",
    window: Window = "1d",
    units: Units = 5000,
    promote: Promote = "ask",
    at: At = "",
    memory_mb: Memory = 8192,
    threads: Threads = 0,
    fresh: Fresh = False,
    status: Status = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Make an adapter better by what users said of its answers.

    Reads feedback, trains the serving version on, and compares both on rows that were held out. A better
    version is put before a share of the users; their verdict decides. After Ctrl-C the same command
    goes on. Exit code 3: no better, 4: too few rows.

    \b
    Examples:
      lora-router adapters improve medical
      lora-router adapters improve medical --at 02:00 --promote auto
      lora-router adapters improve medical --status
    """
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected
    from router.extensions.improve import state, words
    from router.extensions.improve.canary import Canary
    from router.extensions.improve.processes import Limits
    from router.extensions.improve.run import Improvement, ImproveRequest

    if status:
        _show(work, name, json)
        if not json:
            _show_canary(work, name, server, timeout)
        return
    if promote not in ("auto", "ask", "no"):
        raise CliError(f"--promote {promote!r}: auto, ask or no", MISUSED)
    request = ImproveRequest(
        name,
        adapters_dir or _adapters_folder(),
        recipes,
        work,
        feedback,
        least,
        alpha,
        margin,
        Canary(canary, metric, _seconds(window), units) if canary else None,
        promote,  # type: ignore[arg-type]
        Limits(memory_mb, threads),
        at,
        fresh,
    )

    def connect() -> AbstractContextManager[Client]:
        return connected(server, timeout)

    def say(text: str) -> None:
        print(text, file=sys.stderr if json else sys.stdout, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C
    try:
        run = Improvement(request, connect, say, _ask).run()
    except KeyboardInterrupt:
        say(f"\nstopped; go on with: lora-router adapters improve {name}")
        raise
    if json:
        _show(work, name, json)
    else:
        print(f"\n{words.headline(run)}\n{words.advice(run)}")
    codes = {state.Result.NO_BETTER: NO_BETTER, state.Result.TOO_FEW: TOO_FEW}
    if code := codes.get(run.result):
        raise typer.Exit(code)


def _ask(question: str) -> bool:
    """Ask on the terminal; no without one."""
    return sys.stdin.isatty() and typer.confirm(question)


def _adapters_folder() -> Path:
    from router.cli.settings import load_settings

    places = [place for place in load_settings().adapters_dir if isinstance(place, Path)]
    return places[0] if places else Path("adapters")


def _seconds(text: str) -> float:
    from router.cli.command import MISUSED, CliError

    number = text.rstrip("smindh")
    try:
        return float(number) * SECONDS[text[len(number) :] or "s"]
    except (ValueError, KeyError):
        raise CliError(f"--window {text!r}: a number with s, min, h or d", MISUSED) from None


def _show_canary(work: Path, name: str, server: str, timeout: float) -> None:
    """What the report of the last run's canary says now; nothing without a canary."""
    from router.cli.command import CliError
    from router.cli.connect import connected
    from router.extensions.improve import canary, state

    runs = state.runs_of(work, name)
    if not runs or runs[-1].run.result is not state.Result.CANARY:
        return
    try:
        with connected(server, timeout) as client:
            found = canary.sentence(client.experiments.report(runs[-1].run.experiment))
    except CliError as error:
        print(f"the canary is not known now: {error}")
    else:
        print(f"the canary now: {found}")


def _show(work: Path, name: str, json: bool) -> None:
    """All runs of an adapter."""
    from router.cli.output import print_json, print_table
    from router.extensions.improve import state, words

    runs: list[Run] = [folder.run for folder in state.runs_of(work, name)]
    if json:
        print_json(runs)
        return
    if not runs:
        print(f"{name} has no runs in {work}")
        return
    print_table(words.COLUMNS, [words.table_row(run) for run in runs])
    last = runs[-1]
    if state.is_running(work, name):
        print(f"\na run is at work since {time.strftime('%Y-%m-%d %H:%M', time.localtime(last.began))}")
    else:
        print(f"\n{words.headline(last)}\n{words.advice(last)}")
