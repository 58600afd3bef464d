"""`lora-router experiments report`: what the outcomes say as text, with the verdict first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.extensions.experiments.cli.create import Name, experiments_at

if TYPE_CHECKING:
    from router.extensions.experiments.document import Table
    from router.extensions.experiments.report.model import Report

Phase = Annotated[int, typer.Option("--phase", metavar="N", help="The phase; 0 is the last one.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write one self-contained page.")
]
Details = Annotated[
    bool,
    typer.Option("--details", help="Also print segments, p-values, methods, rules and counts."),
]


def report(
    name: Name,
    phase: Phase = 0,
    html: Html = None,
    details: Details = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Show the verdict of an experiment now.

    The verdict comes first, then the difference with its range, what to do next, and a table of all
    differences. You may look as often as you like. --details adds the statistics. --html writes a page with
    charts that needs no other file.

    \b
    Examples:
      lora-router experiments report medical-v2
      lora-router experiments report medical-v2 --details
      lora-router experiments report medical-v2 --html medical-v2.html
    """
    from router.cli.output import print_json

    with experiments_at(server, timeout) as experiments:
        found = experiments.report(name, phase)
    if html:
        from router.extensions.experiments.page import page

        html.write_text(page(found), encoding="utf-8")
    if json:
        print_json(found)
        return
    print_report(found, details)
    if html:
        print(f"page: {html}")


def print_report(report: Report, details: bool = False) -> None:
    """Verdict, facts, next step, and the table of differences; all tables with `details`."""
    from router.cli.output import clean
    from router.extensions.experiments.document import document
    from router.extensions.experiments.next_step import following

    found = document(report)
    facts = [f"{name}: {fact}" for name, fact in found.facts]
    lines = [found.heading, *found.faults, *facts, following(report), "", f"{found.name}: {found.state}"]
    print("\n".join(map(clean, [*lines, *filter(None, [found.hypothesis])])))
    if found.compared:
        _print_table(found.compared)
    _print_lines("Notes", [*([found.checked] if found.checked else []), *found.notes])
    if details:
        for table in (found.arms, *found.more, *found.statistics, found.history):
            _print_table(table)
    elif report.arms:
        print(f"\nStatistics: lora-router experiments report {found.name} --details")


def _print_table(table: Table) -> None:
    """Names of arms and labels keep their letters; heads of columns do not."""
    from router.cli.output import one_line, print_table

    print(f"\n{one_line(table.title)}")
    if table.rows:
        print_table([one_line(head).upper() for head, _ in table.columns], table.rows)
    for note in table.notes:
        print(one_line(note))


def _print_lines(title: str, lines: list[str]) -> None:
    from router.cli.output import one_line

    if lines:
        print("\n".join(["", title, *map(one_line, lines)]))
