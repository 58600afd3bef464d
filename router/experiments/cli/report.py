"""`lora-router experiments report|watch`: what the outcomes say as text, with the verdict first.

The tables of a report are rows of text, the same ones for the terminal and the page.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.experiments.cli import wording
from router.experiments.cli.create import Name
from router.experiments.cli.wording import MARK, UNKNOWN, at, following, heading, since

if TYPE_CHECKING:
    from router.experiments.report.model import ArmNumbers, ArmReport, MetricReport, Report, SegmentReport
    from router.hookspecs import WriteReport

Row = tuple[str, ...]
SAME = "no difference between values is shown: read the overall effect"


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A title, columns of (head, kind), rows, and notes below.

    Kinds: `arm` its name, `name` another one, `n` a number, `i` an interval or a reason, `pill` a decision or
    a state, `` a text.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def tables(report: Report) -> Iterator[ReportTable]:
    """Those of arms against control, in the order of reading; none is empty."""
    found: list[ReportTable] = []
    if report.experiment.spec.mode != "shadow":
        found += [effects(report), past(report)]
    found += [missing(report), pairs(report), guardrails(report), secondary(report), *segments(report)]
    yield from (table for table in found if table.rows or table.notes)


def effects(report: Report) -> ReportTable:
    """The primary metric."""
    spec = report.experiment.spec
    measured = [arm.primary for arm in report.arms if arm.primary]
    first = [
        (spec.control, f"{found.units[0]:,}", wording.plain(found.values[0]), *[""] * 6)
        for found in measured[:1]
    ]
    columns = (
        *(("arm", "arm"), ("units", "n"), (f"value{MARK}", "n"), ("difference", "n")),
        *(
            (_level(report, measured), "i"),
            ("relative", "i"),
            ("p", "n"),
            ("method", ""),
            ("verdict", "pill"),
        ),
    )
    rows = (*first, *map(_effect, report.arms)) if report.arms else ()
    waits = _awaited((arm.arm, arm.primary) for arm in report.arms if arm.primary)
    notes = (*waits, *(f"{arm.arm}: {line}" for arm in report.arms for line in further_lines(arm)))
    return ReportTable(wording.metric_line(spec.primary), columns, rows, notes)


def _level(report: Report, measured: Iterable[MetricReport]) -> str:
    planned = report.experiment.spec.alpha
    return wording.level(next((found.alpha for found in measured), planned), planned)


def _effect(arm: ArmReport) -> Row:
    found = arm.primary
    if found is None:
        return (arm.arm, "", UNKNOWN, "", wording.NOT_YET, "", "", "", arm.verdict.decision)
    return (
        arm.arm,
        f"{found.units[1]:,}",
        wording.plain(found.values[1]),
        wording.difference(found),
        wording.interval(found, why=False),
        wording.relative(found),
        wording.marked(wording.chance(arm.adjusted_p), found.anytime),
        found.method,
        arm.verdict.decision,
    )


def further_lines(arm: ArmReport) -> Iterator[str]:
    """Further lines on an arm's effect."""
    if arm.primary and (text := wording.length(arm.primary)):
        yield text
    if arm.everyone:
        everyone = f"over all {sum(arm.everyone.units):,} units, the routers agreeing or not"
        yield f"{wording.effect(arm.everyone)} {everyone}"
    if arm.blocked:
        yield f"if the checks were sound: {arm.blocked.decision} ({arm.blocked.rule})"


def past(report: Report) -> ReportTable:
    """The primary metric with its covariate and without."""
    both = [(arm.arm, arm.primary, arm.unadjusted) for arm in report.arms]
    rows = []
    for arm, found, plain in both:
        if found and plain:
            for text, one in (("adjusted by the past (CUPED)", found), ("as measured", plain)):
                gain = wording.narrower(found, plain) if one is found else ""
                rows.append((arm, text, wording.difference(one), wording.interval(one, why=False), gain))
    columns = (
        *(("arm", "arm"), ("", ""), ("difference", "n")),
        *((_level(report, (plain for _, _, plain in both if plain)), "i"), ("its width", "")),
    )
    title = f"{report.experiment.spec.primary.name} with and without the unit's own past"
    return ReportTable(title, columns, tuple(rows))


def pairs(report: Report) -> ReportTable:
    """Shadow arms."""
    unit = report.experiment.spec.unit
    rows = tuple(
        (
            arm.arm,
            f"{found.wins:,}",
            f"{found.losses:,}",
            f"{found.ties:,}",
            wording.marked(f"{found.share:.1%} [{found.low:.1%}, {found.high:.1%}]", found.anytime),
            wording.marked(wording.chance(found.p), found.anytime),
            wording.decided_by(found, unit),
        )
        for arm in report.arms
        if (found := arm.pairs)
    )
    columns = (
        *(("arm", "arm"), ("won", "n"), ("lost", "n"), ("tied", "n"), ("share won", "i"), ("p", "n")),
        ("decided by", ""),
    )
    note = "Operational: nobody saw these answers, so this is the judge's opinion, not the users'."
    return ReportTable("Shadow answers against served ones", columns, rows, (note,) if rows else ())


def missing(report: Report) -> ReportTable:
    """Units without an outcome, and by how much that may move the effect."""
    rows = tuple(
        (
            one.arm,
            f"{one.control:.1%}",
            f"{one.treatment:.1%}",
            wording.share_interval(one.relative, one.low, one.high),
            wording.bounds(one.lee_low, one.lee_high),
            wording.bounds(one.worst_low, one.worst_high),
            "settled" if one.settled else "open",
        )
        for one in report.missing
    )
    columns = (
        *(("arm", "arm"), (f"in control{MARK}", "n"), (f"in the arm{MARK}", "n")),
        *(("more or fewer answer", "i"), (f"effect between{MARK}", "i"), (f"at worst{MARK}", "i")),
        ("", "pill"),
    )
    note = (
        "effect between: if an arm makes other users answer (Lee's bounds); at worst: whatever the missing"
        " values are (Manski's). An arm is promoted once its effect cannot come from who answers."
    )
    title = f"Users without {report.experiment.spec.primary.name}"
    return ReportTable(title, columns, rows, (note,) if rows else ())


def guardrails(report: Report) -> ReportTable:
    """Guardrails, with their margins: first as they are read early, then of units whose values are final."""
    found = [(arm.arm, rail) for arm in report.arms for rail in (*arm.early, *arm.guardrails)]
    early = [rail for arm in report.arms for rail in arm.early]
    columns = (
        *(("metric", ""), ("arm", "arm"), (f"control{MARK}", "n"), (f"arm's{MARK}", "n")),
        *(("difference", "n"), (_level(report, (rail for _, rail in found)), "i")),
        *(("margin", ""), ("state", "pill"), ("read from", "")),
    )
    rows = tuple(
        (
            *_compared(wording.rail(rail, rail in early), arm, rail),
            wording.margin(rail),
            rail.state,
            wording.read_from(rail),
        )
        for arm, rail in found
    )
    return ReportTable("Guardrails", columns, rows, _awaited(found))


def _awaited(found: Iterable[tuple[str, MetricReport]]) -> tuple[str, ...]:
    """Why there are no intervals yet, below the table, where there is room for it."""
    return tuple(
        f"{wording.named(one.metric, one.cap)}, {arm}: {wording.interval(one)}"
        for arm, one in found
        if _waits(one)
    )


def _waits(found: MetricReport) -> bool:
    return found.waiting is not None and not (math.isfinite(found.low) or math.isfinite(found.high))


def _compared(name: str, arm: str, found: MetricReport) -> Row:
    return (
        wording.named(name, found.cap),
        arm,
        wording.plain(found.values[0]),
        wording.plain(found.values[1]),
        wording.difference(found),
        wording.interval(found, why=False),
    )


def secondary(report: Report) -> ReportTable:
    """Metrics that decide nothing; p-values are left out, since nothing hangs on them."""
    names = dict.fromkeys(one.metric for arm in report.arms for one in arm.secondary)
    found = [
        (arm.arm, one) for name in names for arm in report.arms for one in arm.secondary if one.metric == name
    ]
    columns = (
        *(("metric", ""), ("arm", "arm"), (f"control{MARK}", "n"), (f"arm's{MARK}", "n")),
        *(("difference", "n"), (_level(report, (one for _, one in found)), "i"), ("relative", "i")),
    )
    rows = tuple((*_compared(one.metric, arm, one), wording.relative(one)) for arm, one in found)
    many = wording.corrected_for(found[0][1].alpha, report.experiment.spec.alpha) if found else 1
    corrected = f"; intervals corrected for all {many:,}" if many > 1 else ""
    return ReportTable(f"Secondary metrics (decide nothing{corrected})", columns, rows, _awaited(found))


def segments(report: Report) -> Iterator[ReportTable]:
    """The primary metric by label, a table for each label and arm."""
    for arm in report.arms:
        for found in arm.segments:
            yield _segment(report, arm, found)


def _segment(report: Report, arm: ArmReport, found: SegmentReport) -> ReportTable:
    control = report.experiment.spec.control
    columns = (
        *(("value", ""), ("units", "n"), (f"control{MARK}", "n"), (f"arm's{MARK}", "n")),
        *(("difference", "n"), (_level(report, found.effects.values()), "i")),
    )
    rows = tuple(
        (
            value,
            f"{sum(one.units):,}",
            wording.plain(one.values[0]),
            wording.plain(one.values[1]),
            wording.difference(one),
            wording.interval(one, why=False),
        )
        for value, one in found.effects.items()
    )
    differ = f"effects differ between values: p = {wording.chance(found.p)}" if found.differ else SAME
    title = f"{report.experiment.spec.primary.name} by {found.label}: {arm.arm} against {control}"
    waits = (f"{value}: {wording.interval(one)}" for value, one in found.effects.items() if _waits(one))
    return ReportTable(title, columns, rows, (*waits, found.text or differ))


def checks(report: Report) -> ReportTable:
    """Checks of the pipeline."""
    rows = tuple((check.name, "FAILED" if check.failed else "ok", check.text) for check in report.checks)
    return ReportTable("Checks", (("check", "name"), ("", "pill"), ("", "")), rows)


def numbers(report: Report) -> ReportTable:
    """Counts and built-in means of each arm."""
    counts = (("units", "n"), ("expected", "n"), ("mature", "n"), ("degraded", "n"), ("answers", "n"))
    means = ((f"{title}{MARK}", "n") for title, _, _ in wording.BUILT_IN)
    columns = (("arm", "arm"), ("weight", "n"), *counts, *means)
    return ReportTable(
        "Sample ratio and answers by arm", columns, tuple(_numbers(report, one) for one in report.numbers)
    )


def _numbers(report: Report, arm: ArmNumbers) -> Row:
    """Only a split has units that can be expected."""
    expected = f"{arm.expected:,.0f}" if report.experiment.spec.mode == "split" else UNKNOWN
    return (
        arm.arm,
        f"{arm.weight:.3g}",
        f"{arm.units:,}",
        expected,
        f"{arm.matured:,}",
        f"{arm.degraded:,}",
        f"{arm.responses:,}",
        *(wording.built_in(arm, name, kind) for _, name, kind in wording.BUILT_IN),
    )


Phase = Annotated[int, typer.Option("--phase", metavar="N", help="The phase; 0 is the last one.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write one self-contained page.")
]
Write = Annotated[
    Path | None,
    typer.Option("--write", metavar="FILE", help="Also write FILE in the format of its suffix, as .html."),
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
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Judge an experiment now.

    The verdict comes first, then effect and interval, guardrails, checks and the numbers of each arm.
    Intervals and p-values are valid however often you look; what is not has a dagger, or "anytime": false.
    --html writes a page with plots that needs no other file. --write knows the formats of plugins, too.

    \b
    Examples:
      lora-router experiments report medical-v2
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
    print_report(found)
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

    made: dict[str, Any] = jsonable(report)
    made["legend"] = f"{wording.LEGEND} (here: anytime is false)"
    anytime = {arm.arm: arm.primary.anytime for arm in report.arms if arm.primary}
    for arm in made["arms"]:
        for measured in (arm["primary"], arm["unadjusted"], arm["everyone"]):
            if measured and measured["length"]:
                measured["length"]["anytime"] = True
    for numbers in made["numbers"]:
        numbers["anytime"] = False
    for point in made["points"]:
        point["anytime"] = anytime.get(point["arm"], True)
    if made["forecast"]:
        made["forecast"]["anytime"] = False
    return made


def print_report(report: Report) -> None:
    """All of it, for a terminal or a file."""
    _print_head(report)
    if report.arms:
        for table in (*tables(report), checks(report), numbers(report)):
            _print_one(table)
        print(f"\n{wording.LEGEND}")
    _print_lines("NOTES", [f"- {note}" for note in report.notes])
    _print_lines("WHAT WAS DONE", _acts(report))
    print(f"\n{following(report)}")


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
    left = len(report.audit) - ACTS
    more = [f"... {left} before" for _ in range(left > 0)]
    return more + [
        f"{at(entry.time)}  {entry.actor}  {entry.act}{f': {entry.reason}' if entry.reason else ''}"
        for entry in report.audit[-ACTS:]
    ]


def _print_head(report: Report) -> None:
    from router.cli.output import clean

    print(f"{heading(report)}  ({report.verdict.rule})")
    print(clean(report.verdict.text))
    if report.forecast:
        print(clean(f"forecast{wording.MARK}: {wording.forecast(report.forecast)}"))
    print()
    print(f"{report.experiment.name}: {since(report)}")
    print(clean(report.experiment.spec.hypothesis))
    if report.experiment.spec.mode == "holdout":
        print(wording.HOLDOUT)
