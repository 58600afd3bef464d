"""A report as text: the verdict first, then what it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.cli import experiment_numbers as numbers
from router.cli.experiment_pairs import at, metric_line, router_line

if TYPE_CHECKING:
    from router.experiments.report.model import ArmReport, Report

EFFECT = ["ARM", "UNITS", "VALUE", "DIFFERENCE", "", "RELATIVE", "P", "METHOD", "VERDICT"]
ACTS = 6
RAILS = ["GUARDRAIL", "ARM", "CONTROL", "ARM'S", "DIFFERENCE", "", "MARGIN", "STATE"]


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
    columns[4] = numbers.level(spec.alpha)
    measured = [arm.primary for arm in report.arms if arm.primary]
    first = [
        (spec.control, f"{found.units[0]:,}", numbers.plain(found.values[0]), *[""] * 6)
        for found in measured[:1]
    ]
    print_table(columns, [*first, *(_effect(arm) for arm in report.arms)])
    for arm in report.arms:
        for line in beside(arm):
            print(f"{arm.arm}: {line}")


def _effect(arm: ArmReport) -> tuple[str, ...]:
    found = arm.primary
    if found is None:
        return (arm.arm, "", numbers.UNKNOWN, "", "none yet", "", "", "", arm.verdict.decision)
    return (
        arm.arm,
        f"{found.units[1]:,}",
        numbers.plain(found.values[1]),
        numbers.signed(found.effect),
        numbers.interval(found.low, found.high),
        numbers.relative(found),
        numbers.chance(arm.adjusted_p),
        found.method,
        arm.verdict.decision,
    )


def beside(arm: ArmReport) -> list[str]:
    """What stands beside an arm's effect, in words."""
    lines = []
    if arm.primary and (text := numbers.length(arm.primary)):
        lines.append(text)
    if arm.everyone:
        found = arm.everyone
        effect = f"{numbers.signed(found.effect)} {numbers.interval(found.low, found.high)}"
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
            numbers.chance(pairs.p),
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
            numbers.plain(rail.values[0]),
            numbers.plain(rail.values[1]),
            numbers.signed(rail.effect),
            numbers.interval(rail.low, rail.high),
            numbers.margin(rail),
            rail.state,
        )
        for arm in report.arms
        for rail in arm.guardrails
    ]
    if rows:
        print()
        columns = [*RAILS]
        columns[5] = numbers.level(report.experiment.spec.alpha)
        print_table(columns, rows)


def _print_checks(report: Report) -> None:
    from router.cli.output import print_table

    print()
    rows = [(check.name, "FAILED" if check.failed else "ok", check.text) for check in report.checks]
    print_table(["CHECK", "", ""], rows)


def _print_arms(report: Report) -> None:
    from router.cli.output import print_table

    print()
    rows = [numbers.cells(report, arm) for arm in report.numbers]
    print_table([*numbers.COUNTS, *(title for title, _, _ in numbers.BUILT_IN)], rows)


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
