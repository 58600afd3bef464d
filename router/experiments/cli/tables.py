"""A report's tables as rows of text, the same ones for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.experiments.cli import wording
from router.experiments.cli.wording import MARK, UNKNOWN

if TYPE_CHECKING:
    from router.experiments.report.model import ArmNumbers, ArmReport, Measured, Report, SegmentReport

Row = tuple[str, ...]
SAME = "no difference between values is shown: read the overall effect"


@dataclass(frozen=True, slots=True)
class Table:
    """A title, columns of (head, kind), rows, and what is said below.

    Kinds: `arm` its name, `name` another one, `n` a number, `i` an interval or a reason, `pill` a decision or
    a state, `` a text.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def tables(report: Report) -> Iterator[Table]:
    """Those of arms against control, in the order of reading; none is empty."""
    found: list[Table] = []
    if report.experiment.spec.mode != "shadow":
        found += [effects(report), past(report)]
    found += [pairs(report), guardrails(report), secondary(report), *segments(report)]
    yield from (table for table in found if table.rows or table.notes)


def effects(report: Report) -> Table:
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
    notes = (*waits, *(f"{arm.arm}: {line}" for arm in report.arms for line in beside(arm)))
    return Table(wording.metric_line(spec.primary), columns, rows, notes)


def _level(report: Report, measured: Iterable[Measured]) -> str:
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


def beside(arm: ArmReport) -> Iterator[str]:
    """What stands beside an arm's effect, in words."""
    if arm.primary and (text := wording.length(arm.primary)):
        yield text
    if arm.everyone:
        everyone = f"over all {sum(arm.everyone.units):,} units, the routers agreeing or not"
        yield f"{wording.effect(arm.everyone)} {everyone}"
    if arm.blocked:
        yield f"if the checks were sound: {arm.blocked.decision} ({arm.blocked.rule})"


def past(report: Report) -> Table:
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
    return Table(title, columns, tuple(rows))


def pairs(report: Report) -> Table:
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
    return Table("Shadow answers against served ones", columns, rows, (note,) if rows else ())


def guardrails(report: Report) -> Table:
    """Guardrails, with their margins."""
    found = [(arm.arm, rail) for arm in report.arms for rail in arm.guardrails]
    columns = (
        *(("metric", ""), ("arm", "arm"), (f"control{MARK}", "n"), (f"arm's{MARK}", "n")),
        *(("difference", "n"), (_level(report, (rail for _, rail in found)), "i")),
        *(("margin", ""), ("state", "pill")),
    )
    rows = tuple(
        (*_compared(rail.metric, arm, rail), wording.margin(rail), rail.state) for arm, rail in found
    )
    return Table("Guardrails", columns, rows, _awaited(found))


def _awaited(found: Iterable[tuple[str, Measured]]) -> tuple[str, ...]:
    """Why there are no intervals yet, below the table, where there is room for it."""
    return tuple(
        f"{wording.named(one.metric, one.cap)}, {arm}: {wording.interval(one)}"
        for arm, one in found
        if _waits(one)
    )


def _waits(found: Measured) -> bool:
    return found.waiting is not None and not (math.isfinite(found.low) or math.isfinite(found.high))


def _compared(name: str, arm: str, found: Measured) -> Row:
    return (
        wording.named(name, found.cap),
        arm,
        wording.plain(found.values[0]),
        wording.plain(found.values[1]),
        wording.difference(found),
        wording.interval(found, why=False),
    )


def secondary(report: Report) -> Table:
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
    told = f"; intervals corrected for all {many:,}" if many > 1 else ""
    return Table(f"Secondary metrics (decide nothing{told})", columns, rows, _awaited(found))


def segments(report: Report) -> Iterator[Table]:
    """The primary metric by label, a table for each label and arm."""
    for arm in report.arms:
        for found in arm.segments:
            yield _segment(report, arm, found)


def _segment(report: Report, arm: ArmReport, found: SegmentReport) -> Table:
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
    return Table(title, columns, rows, (*waits, found.text or differ))


def checks(report: Report) -> Table:
    """Checks of the pipeline."""
    rows = tuple((check.name, "FAILED" if check.failed else "ok", check.text) for check in report.checks)
    return Table("Checks", (("check", "name"), ("", "pill"), ("", "")), rows)


def numbers(report: Report) -> Table:
    """Counts and built-in means of each arm."""
    counts = (("units", "n"), ("expected", "n"), ("mature", "n"), ("degraded", "n"), ("answers", "n"))
    means = ((f"{title}{MARK}", "n") for title, _, _ in wording.BUILT_IN)
    columns = (("arm", "arm"), ("weight", "n"), *counts, *means)
    return Table(
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
