"""`lora-router experiments export`: what is kept of a phase as files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.command import INTERRUPTED, MISUSED, CliError

if TYPE_CHECKING:
    from router.extensions.experiments.export import Exported

Name = Annotated[str, typer.Argument(metavar="NAME", help="The experiment.")]
What = Annotated[str, typer.Argument(metavar="units|outcomes|values", help="What of it.")]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="A new file: .csv.")]
Phase = Annotated[int | None, typer.Option("--phase", metavar="N", help="The phase; default: the last.")]
Store = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where experiments are kept; default: the setting `database` found here.",
        show_default=False,
    ),
]


def export(
    name: Name,
    what: What,
    path: Target,
    phase: Phase = None,
    store: Store = "",
    json: flags.Json = False,
) -> None:
    """Write the records of a phase to a file.

    units has a row for each unit: arm, first exposure, segments; outcomes what was recorded; values each
    unit's value of each metric, as the report has it. Units are hashes; the documentation has the formula, to
    join by. The database is read as it is at one moment, beside a running server or without one.

    \b
    Examples:
      lora-router experiments export medical-v2 values values.csv
      lora-router experiments export medical-v2 outcomes outcomes.csv --phase 1
      lora-router experiments export medical-v2 units units.csv --store postgresql://host/experiments
    """
    from router.extensions.experiments.export import export as write

    if phase is not None and phase < 1:
        raise CliError(f"--phase is the number of a phase, from 1, not {phase}", MISUSED)
    url = store or _store_here()
    with _nothing_written():
        done = write(url, name, phase, what, path, _print_rows if sys.stderr.isatty() else None)
    _print(done, json)


def _store_here() -> str:
    """The URL of the store that a server with the settings found here has."""
    from router.cli.settings import adapter_folders, load_settings
    from router.extensions.experiments.store.store import FILE
    from router.registry.state import state_dir

    settings = load_settings()
    if settings.database:
        return settings.database
    path = state_dir(adapter_folders(settings)) / FILE
    if not path.exists():
        text = (
            f"{path}: no server kept experiments here yet; run it in the server's folder, or name a --store"
        )
        raise CliError(text)
    return f"sqlite:///{path}"


@contextmanager
def _nothing_written() -> Iterator[None]:
    """A file takes its name at the end only, so that Ctrl-C leaves none."""
    try:
        yield
    except KeyboardInterrupt:
        raise CliError("interrupted: nothing was written", INTERRUPTED) from None


def _print_rows(rows: int) -> None:
    """Rows so far; the next text takes the line."""
    print(f"{rows:,} rows", end="\r", file=sys.stderr, flush=True)


def _print(done: Exported, json: bool) -> None:
    from router.cli import output

    if json:
        output.print_json({"path": done.path, "rows": done.rows, "bytes": done.size})
    else:
        print(f"{done.path}: {done.rows:,} rows, {output.size(done.size)}")
