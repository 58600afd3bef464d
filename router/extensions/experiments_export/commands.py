"""`lora-router experiments export`: what is kept of a phase as files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.command import INTERRUPTED, MISUSED, CliError

if TYPE_CHECKING:
    from router.extensions.experiments_export.export import Exported

Name = Annotated[str, typer.Argument(metavar="NAME", help="The experiment.")]
What = Annotated[
    str, typer.Argument(metavar="units|outcomes|values|pairs|all", help="What of it; all into a folder.")
]
Target = Annotated[
    Path, typer.Argument(metavar="PATH", help="File: .parquet, .csv or .jsonl; or a folder, made for all.")
]
Phase = Annotated[int | None, typer.Option("--phase", metavar="N", help="The phase; default: the last.")]
Store = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where experiments are kept; default: the setting experiments found here.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Form = Annotated[str, typer.Option("--form", metavar="parquet|csv|jsonl", help="Of the files in a folder.")]
FORMS = ("parquet", "csv", "jsonl")


def export(
    name: Name,
    what: What,
    path: Target,
    phase: Phase = None,
    store: Store = "",
    overwrite: Overwrite = False,
    form: Form = "parquet",
    json: flags.Json = False,
) -> None:
    """Write what is kept of a phase to files.

    units has a row for each unit: arm, first exposure, segments; outcomes what was recorded; values each
    unit's value of each metric, as the report has it; pairs the answers of shadow arms. Units are
    hashes; the documentation has the formula, to join by. The database is read as it is at
    one moment, beside a running server or without one.

    \b
    Examples:
      lora-router experiments export medical-v2 values values.parquet
      lora-router experiments export medical-v2 all exported --form csv --phase 1
      lora-router experiments export medical-v2 units units.csv --store postgresql://host/experiments
    """
    from router.extensions.experiments_export.export import export as write

    if form not in FORMS:
        raise CliError(f"--form {form}: there are {', '.join(FORMS)}", MISUSED)
    if phase is not None and phase < 1:
        raise CliError(f"--phase is the number of a phase, from 1, not {phase}", MISUSED)
    url = store or _store_here()
    with _nothing_written(), _progress() as progress:
        done = write(url, name, phase, what, path, progress, overwrite=overwrite, form=form)
    _print(done, json)


def _store_here() -> str:
    """The URL of the store that a server with the settings found here has."""
    from router.cli.settings import adapter_folders, load_settings
    from router.experiments.plugin import AUTO, FILE
    from router.registry.state import state_dir

    settings = load_settings()
    if not settings.experiments:
        raise CliError("experiments are off here (the setting experiments is empty): name a --store", MISUSED)
    if settings.experiments != AUTO:
        return settings.experiments
    path = state_dir(adapter_folders(settings)) / FILE
    if not path.exists():
        text = (
            f"{path}: no server kept experiments here yet; run it in the server's folder, or name a --store"
        )
        raise CliError(text)
    return f"sqlite:///{path}"


@contextmanager
def _nothing_written() -> Iterator[None]:
    """Files take their names at the end only, so that Ctrl-C leaves none."""
    try:
        yield
    except KeyboardInterrupt:
        raise CliError("interrupted: nothing was written", INTERRUPTED) from None


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None] | None]:
    """Rows so far, on a terminal."""
    from router.cli.output import console, is_plain

    if is_plain(sys.stderr):
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    rows = TextColumn("{task.completed:,} rows")
    columns = (TextColumn("{task.description}"), BarColumn(), rows, TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report_progress(what: str, rows: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=None)
            bar.update(tasks[what], completed=rows)

        yield report_progress


def _print(done: tuple[Exported, ...], json: bool) -> None:
    from router.cli import output
    from router.cli.output import print_json, print_table

    if json:
        print_json([{"path": d.path, "rows": d.rows, "bytes": d.size} for d in done])
    else:
        print_table(
            ["FILE", "ROWS", "SIZE"], [(str(d.path), f"{d.rows:,}", output.size(d.size)) for d in done]
        )
