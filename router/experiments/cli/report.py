"""`lora-router experiments report|watch`: what the outcomes say as text, with the verdict first."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.experiments.cli import wording
from router.experiments.cli.create import Name
from router.experiments.cli.wording import at, metric_line, router_line

if TYPE_CHECKING:
    from router.experiments.report.model import ArmReport, Report

Phase = Annotated[int, typer.Option("--phase", metavar="N", help="The phase; 0 is the last one.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write one self-contained page.")
]
Every = Annotated[float, typer.Option("--every", metavar="SECONDS", help="Time between two looks.")]
Looks = Annotated[int, typer.Option("--looks", metavar="N", help="End after so many looks; 0: go on.")]
CLEAR = "\x1b[2J\x1b[H"
EFFECT = ["ARM", "UNITS", "VALUE", "DIFFERENCE", "", "RELATIVE", "P", "METHOD", "VERDICT"]
ACTS = 6
RAILS = ["GUARDRAIL", "ARM", "CONTROL", "ARM'S", "DIFFERENCE", "", "MARGIN", "STATE"]


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
    from router.cli.output import print_json

    with connected(server, timeout) as client:
        found = client.experiments.report(name, phase)
    if html:
        from router.experiments.cli.page import page

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
    from router.cli.output import is_plain, jsonable

    if json:
        from json import dumps

        print(dumps(jsonable(found), ensure_ascii=False), flush=True)
        return
    print("" if is_plain(sys.stdout) else CLEAR, end="")
    print_report(found)
    sys.stdout.flush()


def print_report(report: Report) -> None:
    """All of it, for a terminal or a file."""
    _print_head(report)
    if report.arms:
        if report.experiment.spec.mode != "shadow":
            _print_effect(report)
        _print_pairs(report)
        _print_guardrails(report)
        _print_checks(report)
        _print_arms(report)
    _print_lines("NOTES", [f"- {note}" for note in report.notes])
    _print_lines("WHAT WAS DONE", _acts(report))
    print(f"\n{following(report)}")


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


def heading(report: Report) -> str:
    """The verdict in capitals, with its arm."""
    who = f" {report.arm}" if report.arm and report.verdict.decision in ("promote", "stop for harm") else ""
    return f"{report.verdict.decision.upper()}{who}"


def _print_head(report: Report) -> None:
    from router.cli.output import clean

    print(f"{heading(report)}  ({report.verdict.rule})")
    print(clean(f"{report.verdict.text}\n"))
    print(f"{report.experiment.name}: {since(report)}")
    print(clean(report.experiment.spec.hypothesis))


def since(report: Report) -> str:
    """`running, phase 1 since ...; report of ...`."""
    phase = next((p for p in report.experiment.phases if p.number == report.phase), None)
    began = f", phase {report.phase} since {at(phase.started)}" if phase else ""
    return f"{report.experiment.state.value}{began}; report of {at(report.time)}"


def _print_effect(report: Report) -> None:
    from router.cli.output import print_table

    spec = report.experiment.spec
    print(f"\n{metric_line(spec.primary)}")
    columns = [*EFFECT]
    columns[4] = wording.level(spec.alpha)
    measured = [arm.primary for arm in report.arms if arm.primary]
    first = [
        (spec.control, f"{found.units[0]:,}", wording.plain(found.values[0]), *[""] * 6)
        for found in measured[:1]
    ]
    print_table(columns, [*first, *(_effect(arm) for arm in report.arms)])
    for arm in report.arms:
        for line in beside(arm):
            print(f"{arm.arm}: {line}")


def _effect(arm: ArmReport) -> tuple[str, ...]:
    found = arm.primary
    if found is None:
        return (arm.arm, "", wording.UNKNOWN, "", "none yet", "", "", "", arm.verdict.decision)
    return (
        arm.arm,
        f"{found.units[1]:,}",
        wording.plain(found.values[1]),
        wording.signed(found.effect),
        wording.interval(found.low, found.high),
        wording.relative(found),
        wording.chance(arm.adjusted_p),
        found.method,
        arm.verdict.decision,
    )


def beside(arm: ArmReport) -> list[str]:
    """What stands beside an arm's effect, in words."""
    lines = []
    if arm.primary and (text := wording.length(arm.primary)):
        lines.append(text)
    if arm.everyone:
        found = arm.everyone
        effect = f"{wording.signed(found.effect)} {wording.interval(found.low, found.high)}"
        lines.append(f"{effect} over all {sum(found.units):,} units, the routers agreeing or not")
    if arm.blocked:
        lines.append(f"if the checks were sound: {arm.blocked.decision} ({arm.blocked.rule})")
    return lines


def _print_pairs(report: Report) -> None:
    from router.cli.output import print_table

    found = [(arm.arm, arm.pairs) for arm in report.arms if arm.pairs]
    if not found:
        return
    print("\nshadow answers against served ones (operational: nobody saw them)")
    rows = [
        (
            arm,
            f"{pairs.wins:,}",
            f"{pairs.losses:,}",
            f"{pairs.ties:,}",
            f"{pairs.share:.1%} [{pairs.low:.1%}, {pairs.high:.1%}]",
            wording.chance(pairs.p),
        )
        for arm, pairs in found
    ]
    print_table(["ARM", "WON", "LOST", "TIED", "SHARE WON", "P"], rows)


def _print_guardrails(report: Report) -> None:
    from router.cli.output import print_table

    rows = [
        (
            rail.metric,
            arm.arm,
            wording.plain(rail.values[0]),
            wording.plain(rail.values[1]),
            wording.signed(rail.effect),
            wording.interval(rail.low, rail.high),
            wording.margin(rail),
            rail.state,
        )
        for arm in report.arms
        for rail in arm.guardrails
    ]
    if rows:
        print()
        columns = [*RAILS]
        columns[5] = wording.level(report.experiment.spec.alpha)
        print_table(columns, rows)


def _print_checks(report: Report) -> None:
    from router.cli.output import print_table

    print()
    rows = [(check.name, "FAILED" if check.failed else "ok", check.text) for check in report.checks]
    print_table(["CHECK", "", ""], rows)


def _print_arms(report: Report) -> None:
    from router.cli.output import print_table

    print()
    rows = [wording.cells(report, arm) for arm in report.numbers]
    print_table([*wording.COUNTS, *(title for title, _, _ in wording.BUILT_IN)], rows)


def following(report: Report) -> str:
    """The command that comes next."""
    name, decision = report.experiment.name, report.verdict.decision
    if report.phase == 0:
        return f"next: lora-router experiments start {name}"
    if report.experiment.promoted:
        return f"promoted: {report.experiment.promoted}; undo: lora-router experiments rollback {name}"
    if any(entry.act == "roll back" for entry in report.audit):
        return "next: nothing; it was promoted and rolled back"
    arm = next((a for a in report.experiment.spec.arms if a.name == report.arm), None)
    if decision == "promote" and arm and arm.router:
        return f"next: make it the server's own: {router_line(arm.router)}"
    if decision == "promote":
        return f"next: lora-router experiments promote {name}"
    if decision == "stop for harm":
        return f"next: lora-router experiments stop {name} --reason harm"
    if decision == "invalid":
        return "next: find out why the check failed; numbers of a broken pipeline say nothing about the arms"
    if report.experiment.state == "stopped":
        return f"next: nothing; it has stopped, and `lora-router experiments start {name}` begins a new phase"
    return f"next: wait; lora-router experiments watch {name}"
