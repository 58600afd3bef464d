"""`lora-router experiments report|watch`: what the outcomes say."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.experiment_create import Name

if TYPE_CHECKING:
    from router.experiments.report.model import Report

Phase = Annotated[int, typer.Option("--phase", metavar="N", help="The phase; 0 is the last one.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write one self-contained page.")
]
Every = Annotated[float, typer.Option("--every", metavar="SECONDS", help="Time between two looks.")]
Looks = Annotated[int, typer.Option("--looks", metavar="N", help="End after so many looks; 0: go on.")]
CLEAR = "\x1b[2J\x1b[H"


def report(
    name: Name,
    phase: Phase = 0,
    html: Html = None,
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Judge an experiment now.

    The verdict comes first, then effect and interval, guardrails, checks and the numbers of each arm.
    Everything is valid however often you look. --html writes a page with plots that needs no other file.

    \b
    Examples:
      lora-router experiments report medical-v2
      lora-router experiments report medical-v2 --html medical-v2.html
    """
    from router.cli.connect import connected
    from router.cli.experiment_table import print_report
    from router.cli.output import print_json

    with connected(server, timeout) as client:
        found = client.experiments.report(name, phase)
    if html:
        from router.cli.experiment_page import page

        html.write_text(page(found), encoding="utf-8")
    if json:
        print_json(found)
    else:
        print_report(found)
        if html:
            print(f"page: {html}")


def watch(
    name: Name,
    every: Every = 5.0,
    looks: Looks = 0,
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Look at an experiment again and again.

    Ends with Ctrl-C, when the experiment stops, or after --looks. With --json, one line for each look.

    \b
    Example:
      lora-router experiments watch medical-v2 --every 30
    """
    from router.cli.connect import connected
    from router.cli.errors import MISUSED, CliError

    if every <= 0:
        raise CliError(f"--every must be above 0 seconds, not {every:g}", MISUSED)
    seen = 0
    with connected(server, timeout) as client:
        while True:
            found = client.experiments.report(name)
            _show(found, json)
            seen += 1
            if seen == looks or found.experiment.state == "stopped":
                return
            time.sleep(every)


def _show(found: Report, json: bool) -> None:
    from router.cli.experiment_table import print_report
    from router.cli.output import is_plain, jsonable

    if json:
        from json import dumps

        print(dumps(jsonable(found), ensure_ascii=False), flush=True)
        return
    print("" if is_plain(sys.stdout) else CLEAR, end="")
    print_report(found)
    sys.stdout.flush()
