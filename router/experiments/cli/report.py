"""`lora-router experiments report|watch`: what the outcomes say as text, with the verdict first."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.experiments.cli.create import Name

if TYPE_CHECKING:
    from router.experiments.report.model import Report
    from router.experiments.report_tables import ReportTable
    from router.hookspecs import WriteReport

Phase = Annotated[int, typer.Option("--phase", metavar="N", help="The phase; 0 is the last one.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write one self-contained page.")
]
Write = Annotated[
    Path | None,
    typer.Option("--write", metavar="FILE", help="Also write FILE in the format of its suffix, as .html."),
]
Details = Annotated[
    bool, typer.Option("--details", help="Also print p-values, methods, rules, counts and all checks.")
]
Every = Annotated[float, typer.Option("--every", metavar="SECONDS", help="Time between two looks.")]
Looks = Annotated[int, typer.Option("--looks", metavar="N", help="End after so many looks; 0: go on.")]
PAGE = "html"
BUILT_IN = {PAGE: "experiments_page"}  # formats, and the extensions that write them
CLEAR = "\x1b[2J\x1b[H"
ACTS = 6


def report(
    name: Name,
    phase: Phase = 0,
    html: Html = None,
    write: Write = None,
    details: Details = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Judge an experiment now.

    The verdict comes first, then the difference with its range, and what to do next. You may look as often
    as you like. --details adds the statistics. In JSON, what may not be looked at often has "anytime": false.
    --html writes a page with plots that needs no other file. --write knows the formats of plugins, too.

    \b
    Examples:
      lora-router experiments report medical-v2
      lora-router experiments report medical-v2 --details
      lora-router experiments report medical-v2 --html medical-v2.html
    """
    from router.cli.connect import connected
    from router.cli.output import print_json

    files = [(html, PAGE)] if html else []
    files += [(write, write.suffix.removeprefix("."))] if write else []
    writers = [writer_of(form) for _, form in files]
    with connected(server, timeout) as client:
        found = client.experiments.report(name, phase)
    for (file, _), writer in zip(files, writers, strict=True):
        content = writer(found)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    if json:
        print_json(document(found))
        return
    print_report(found, details)
    for file, form in files:
        print(f"{'page' if form == PAGE else 'report'}: {file}")


def writer_of(form: str) -> WriteReport:
    """What writes reports in a format. Raises CliError where no plugin does, ConfigError."""
    from router.cli.plugins import plugins_with
    from router.cli.settings import load_settings

    host = plugins_with("register_report_formats", load_settings())
    formats = host.report_formats()
    if form in formats:
        return formats[form].write
    if form in BUILT_IN:
        broken = [
            f"which is broken: {p.error}" for p in host.status() if p.error and p.name == BUILT_IN[form]
        ]
        why = broken[0] if broken else "which is not there"
        raise CliError(f"a report as {form} needs the extension {BUILT_IN[form]}, {why}", MISUSED)
    known = ", ".join(sorted(formats)) or "none"
    raise CliError(f"no plugin writes reports as {form!r}; the formats are: {known}", MISUSED)


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
    from router.cli.output import is_plain

    if json:
        from json import dumps

        print(dumps(document(found), ensure_ascii=False), flush=True)
        return
    print("" if is_plain(sys.stdout) else CLEAR, end="")
    print_report(found)
    sys.stdout.flush()


def document(report: Report) -> dict[str, Any]:
    """A report for JSON: every field, and `anytime` with all that has numbers.

    What is not known, and bounds that are infinite, are null.
    """
    from router.cli.output import jsonable
    from router.experiments import report_tables

    made: dict[str, Any] = jsonable(report)
    made["legend"] = f"{report_tables.LEGEND} (here: anytime is false)"
    anytime = {arm.arm: arm.primary.anytime for arm in report.arms if arm.primary}
    for numbers in made["numbers"]:
        numbers["anytime"] = False
    for point in made["points"]:
        point["anytime"] = anytime.get(point["arm"], True)
    if made["forecast"]:
        made["forecast"]["anytime"] = False
    if made["planned"]:
        made["planned"]["anytime"] = False
    return made


def print_report(report: Report, details: bool = False) -> None:
    """All of it, for a terminal or a file; the statistics only with `details`."""
    from router.experiments import check_words, report_tables, words

    _print_head(report)
    if report.arms:
        for table in report_tables.tables(report):
            _print_one(table)
        _print_lines("Checks of the data", [line] if (line := check_words.checks_line(report)) else [])
        _print_lines("How to read this", words.legend(report))
    _print_lines("Notes", [f"- {note}" for note in report.notes])
    if details:
        for table in report_tables.details(report):
            _print_one(table)
        _print_lines("What was done", _acts(report))
    elif report.arms:
        print(f"\nStatistics: lora-router experiments report {report.experiment.name} --details")


def _print_one(table: ReportTable) -> None:
    """Names of arms and labels keep their letters; heads of columns do not."""
    from router.cli.output import one_line, print_table

    print(f"\n{one_line(table.title)}")
    if table.rows:
        print_table([_head(text) for text, _ in table.columns], table.rows)
    for note in table.notes:
        print(one_line(note))


def _head(text: str) -> str:
    from router.cli.output import one_line

    return one_line(text).upper()


def _print_lines(title: str, lines: list[str]) -> None:
    from router.cli.output import one_line

    if lines:
        print("\n".join(["", title, *map(one_line, lines)]))


def _acts(report: Report) -> list[str]:
    """The last acts on the experiment; the page has all."""
    from router.experiments import words

    left = len(report.audit) - ACTS
    more = [f"... {left} before" for _ in range(left > 0)]
    return more + [
        f"{words.at(entry.time)}  {entry.actor}  {entry.act}{f': {entry.reason}' if entry.reason else ''}"
        for entry in report.audit[-ACTS:]
    ]


def _print_head(report: Report) -> None:
    from router.cli.output import clean
    from router.experiments import check_words, words
    from router.experiments.next_step import following

    lines = [words.heading(report), *check_words.failed_checks(report), *words.effect_lines(report)]
    lines += [
        *words.outlook(report),
        following(report),
        "",
        f"{report.experiment.name}: {words.since(report)}",
    ]
    lines.append(report.experiment.spec.hypothesis)
    if report.judged.spec.mode == "holdout":
        lines.append(words.HOLDOUT)
    print("\n".join(clean(line) for line in lines))
