"""The tables of a report as rows of text, the same ones for the terminal, the page and the console.

`tables` are for everybody. `details` are the statistics behind them, for those who check them: p-values,
methods, rules. A number that may not be looked at often has a dagger there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.experiments import words
from router.experiments.interference import WORDS
from router.experiments.model import Kind
from router.experiments.words import MARK, change, form_of, named
from router.quantities import NO_RANGE, UNKNOWN, percent

if TYPE_CHECKING:
    from router.experiments.report.model import ArmNumbers, ArmReport, MetricReport, Report, SegmentReport

Row = tuple[str, ...]
DAYS = (
    "To see whether a difference wears off or grows. A row has the {units} with an outcome in that time, so"
    " later rows have other {units} than the first."
)
MOST_PAIRS = 24  # that are listed of an arm
NUMBERS = "Units and answers by arm"
LEGEND = (
    "intervals and p-values may be looked at as often as you like; † marks what may not: averages and"
    " projections without an interval"
)

P_VALUES = (
    "p holds however often the report is read, so it is larger than that of a test that looks once: at the"
    " planned size up to twice as large, before it and after many looks more. With several arms it is Holm's."
)


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A title, columns of (head, kind), rows, and notes below.

    Kinds: `arm` its name, `name` another one, `n` a number, `i` a difference with its range, `pill` a state
    with its mark, `` a text.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    found: tuple[MetricReport | None, ...] = ()  # what each row is of


def tables(report: Report) -> Iterator[ReportTable]:
    """Those of arms against control, in the order of reading; none is empty."""
    found = [] if report.judged.spec.mode == "shadow" else [effects(report)]
    found += [missing(report), pairs(report), guardrails(report), secondary(report)]
    found += [*segments(report), *days(report)]
    yield from (table for table in found if table.rows or table.notes)


def effects(report: Report) -> ReportTable:
    """The primary metric."""
    spec, form = report.judged.spec, words.quantity(report.judged.spec.primary)
    measured = [arm.primary for arm in report.arms if arm.primary]
    control = spec.control if spec.control == "control" else f"{spec.control} (control)"
    first = [(control, f"{found.units[0]:,}", form.value(found.values[0]), "", "") for found in measured[:1]]
    columns = (
        *(("arm", "arm"), (f"{spec.unit}s", "n"), (spec.primary.name, "n")),
        *((f"difference from {spec.control}", "i"), ("", "pill")),
    )
    rows = (*first, *(_effect(report, arm) for arm in report.arms)) if report.arms else ()
    lines = (f"{arm.arm} {line}" for arm in report.arms if (line := words.unadjusted_line(report, arm)))
    waits = _awaited(report, ((arm.arm, arm.primary) for arm in report.arms if arm.primary))
    title = f"{named(spec.primary.name, spec.primary.cap)}, which decides"
    return ReportTable(
        f"{title} ({words.direction(spec.primary.higher_is_better)})",
        columns,
        rows,
        (*waits, *lines),
        (*(None for _ in first), *(arm.primary for arm in report.arms)),
    )


def _effect(report: Report, arm: ArmReport) -> Row:
    found, spec = arm.primary, report.judged.spec
    if found is None:
        return (arm.arm, "", UNKNOWN, NO_RANGE, "")
    form = words.quantity(spec.primary)
    read = words.primary_reading(report, arm)
    return (arm.arm, f"{found.units[1]:,}", form.value(found.values[1]), change(form, found), read)


def pairs(report: Report) -> ReportTable:
    """Shadow arms: their answers, and how many equal the served ones."""
    rows = tuple(
        (arm.arm, f"{found.answers:,}", f"{found.same:,}") for arm in report.arms if (found := arm.pairs)
    )
    columns = (("arm", "arm"), ("answers", "n"), ("same text", "n"))
    return ReportTable("Answers that nobody saw, beside those that were served", columns, rows)


def guardrails(report: Report) -> ReportTable:
    """Guardrails, with their margins, and from how many units of what age they are read."""
    found = [(arm.arm, rail) for arm in report.arms for rail in arm.rails]
    columns = (*_compared_columns(report), ("allowed", "n"), ("", "pill"), ("read from", ""))
    rows = tuple(
        (
            *_compared(report, arm, rail),
            words.allowed(form_of(report.judged, rail), rail),
            words.guarded(report, rail),
            _read_from(report, rail),
        )
        for arm, rail in found
    )
    notes = _awaited(report, found)
    return ReportTable("What must not get worse", columns, rows, notes, tuple(rail for _, rail in found))


def _read_from(report: Report, found: MetricReport) -> str:
    """`1,500 users after 7 days`: how many units a metric is read from, and from what age."""
    units = f"{sum(found.units):,} {report.judged.spec.unit}s"
    return f"{units} after {words.age_of(found)}" if found.age else units


def missing(report: Report) -> ReportTable:
    """Units without an outcome, and by how much that may move the effect."""
    spec = report.judged.spec
    form = words.quantity(spec.primary)

    def between(low: float | None, high: float | None) -> str:
        if low is None or high is None:
            return UNKNOWN
        return f"{form.difference(low)} to {form.difference(high)}"

    rows = tuple(
        (
            one.arm,
            percent(one.control),
            percent(one.treatment),
            between(one.lee_low, one.lee_high),
            "✓ cannot come from who answers" if one.settled else "may come from who answers",
        )
        for one in report.missing
    )
    columns = (
        *(("arm", "arm"), (spec.control, "n"), ("this arm", "n")),
        *(("if other users answer", "i"), ("the difference", "pill")),
    )
    note = (
        f"The difference on {spec.primary.name} lies between these bounds if an arm makes other {spec.unit}s"
        " answer (Lee's bounds)."
    )
    title = f"{spec.unit}s without {spec.primary.name}".capitalize()
    return ReportTable(title, columns, rows, (note,) if rows else ())


def secondary(report: Report) -> ReportTable:
    """Metrics that decide nothing."""
    names = dict.fromkeys(one.metric for arm in report.arms for one in arm.secondary)
    found = [
        (arm.arm, one) for name in names for arm in report.arms for one in arm.secondary if one.metric == name
    ]
    columns = (*_compared_columns(report), ("", "pill"))
    rows = tuple((*_compared(report, arm, one), words.reading(report, one)) for arm, one in found)
    notes = (*_awaited(report, found), *_many(report, (one for _, one in found)))
    title = "Further metrics, which decide nothing"
    return ReportTable(title, columns, rows, notes, tuple(one for _, one in found))


def _compared_columns(report: Report) -> tuple[tuple[str, str], ...]:
    control = report.judged.spec.control
    treated = [arm.arm for arm in report.arms]
    return (
        *(("metric", "name"), ("arm", "arm"), (control, "n")),
        *((treated[0] if len(treated) == 1 else "this arm", "n"), ("difference", "i")),
    )


def _compared(report: Report, arm: str, found: MetricReport) -> Row:
    form = form_of(report.judged, found)
    values = (form.value(value) for value in found.values)
    return (words.labelled(found), arm, *values, change(form, found))


def _many(report: Report, found: Iterable[MetricReport]) -> tuple[str, ...]:
    """A note on ranges that hold together."""
    many = max((corrected_for(one.alpha, report.judged.spec.alpha) for one in found), default=1)
    text = f"These ranges are wider, so that all {many:,} of them hold at once"
    return (f"{text}: one of many numbers looks good by chance.",) if many > 1 else ()


def _awaited(report: Report, found: Iterable[tuple[str, MetricReport]]) -> tuple[str, ...]:
    """Why there are no ranges yet, and which metrics compare little, below the table."""
    unit, compared = report.judged.spec.unit, list(found)
    waits = (
        f"{named(one.metric, one.cap)}, {arm}: {NO_RANGE}: {words.waiting(one.waiting, unit)}"
        for arm, one in compared
        if one.waiting is not None and not (math.isfinite(one.low) or math.isfinite(one.high))
    )
    shared = dict.fromkeys(one.metric for _, one in compared if one.shared_queue)
    means = {m.name: m for m in report.judged.spec.metrics if m.kind is Kind.MEAN and not m.built_in}
    per = dict.fromkeys(one.metric for _, one in compared if one.metric in means)
    over = (f"{name} is {words.per_unit(means[name], unit)}." for name in per)
    return (*waits, *over, *(f"{metric}: {WORDS}." for metric in shared))


def segments(report: Report) -> Iterator[ReportTable]:
    """The primary metric by label, a table for each label and arm."""
    for arm in report.arms:
        for found in arm.segments:
            yield _segment(report, arm, found)


def _segment(report: Report, arm: ArmReport, found: SegmentReport) -> ReportTable:
    spec = report.judged.spec
    form = words.quantity(spec.primary)
    columns = (
        *((found.label, "name"), (f"{spec.unit}s", "n"), (spec.control, "n")),
        *((arm.arm, "n"), ("difference", "i"), ("", "pill")),
    )
    rows = tuple(
        (
            value,
            f"{sum(one.units):,}",
            *(form.value(of) for of in one.values),
            change(form, one),
            words.reading(report, one),
        )
        for value, one in found.effects.items()
    )
    title = f"{spec.primary.name} by {found.label}: {arm.arm} against {spec.control}"
    waits = _awaited(report, found.effects.items())
    notes = (*waits, words.differs(found), *_many(report, found.effects.values()))
    return ReportTable(title, columns, rows, notes, tuple(found.effects.values()))


def days(report: Report) -> Iterator[ReportTable]:
    """The primary metric by days since a unit's first request, a table for each arm that has several."""
    spec = report.judged.spec
    form = words.quantity(spec.primary)
    for arm in report.arms:
        rows = tuple(
            (name, f"{sum(one.units):,}", *(form.value(of) for of in one.values), change(form, one))
            for name, one in arm.days.items()
        )
        columns = (
            *((f"since the {spec.unit}'s first request", "name"), (f"{spec.unit}s", "n")),
            *((spec.control, "n"), (arm.arm, "n"), ("difference", "i")),
        )
        title = f"{spec.primary.name} by days: {arm.arm} against {spec.control}, which decides nothing"
        if rows:
            yield ReportTable(title, columns, rows, (DAYS.format(units=f"{spec.unit}s"),))


# -- Behind the fold


def details(report: Report) -> Iterator[ReportTable]:
    """The statistics, all checks, and counts of each arm; none is empty."""
    found = (rulings(report), statistics(report), checks(report), numbers(report))
    yield from (table for table in found if table.rows)


def rulings(report: Report) -> ReportTable:
    """Verdicts as programs read them."""
    verdicts = [("all", report.verdict), *((arm.arm, arm.verdict) for arm in report.arms)]
    verdicts += [(f"{arm.arm}, if the data had no fault", arm.blocked) for arm in report.arms if arm.blocked]
    rows = tuple((arm, one.decision, one.rule, one.text) for arm, one in verdicts)
    columns = (("arm", "arm"), ("verdict", "name"), ("rule", "name"), ("", ""))
    return ReportTable("Verdicts by their rules", columns, rows)


def statistics(report: Report) -> ReportTable:
    """Every comparison with its interval's level, p-value and method."""
    planned = report.judged.spec.alpha
    columns = (
        *(("metric", "name"), ("", ""), ("arm", "arm"), ("difference", "i"), ("relative", "i")),
        *(("level", "n"), ("p", "n"), ("method", "name"), ("state", "name")),
    )
    rows = tuple(
        (
            named(found.metric, found.cap),
            what,
            arm,
            change(form_of(report.judged, found), found),
            words.relative(found),
            level(found.alpha, planned),
            marked(chance(p), found.anytime),
            found.method,
            found.state,
        )
        for arm, what, found, p in _measured(report)
    )
    spread = (
        f"{found.label}, {arm.arm}: effects differ between values: p = {chance(found.p)}"
        for arm in report.arms
        for found in arm.segments
    )
    return ReportTable("Statistics", columns, rows, (*spread, P_VALUES, f"{LEGEND[:1].upper()}{LEGEND[1:]}."))


def _measured(report: Report) -> Iterator[tuple[str, str, MetricReport, float]]:
    """Arm, what it is, the comparison, and its p-value; that of the primary metric is Holm's."""
    for arm in report.arms:
        if arm.primary:
            yield arm.arm, "decides", arm.primary, arm.adjusted_p
        if arm.unadjusted:
            yield (
                arm.arm,
                f"without the past ({narrower(arm.primary, arm.unadjusted)})",
                arm.unadjusted,
                math.nan,
            )
        for rail in arm.rails:
            yield arm.arm, "guardrail, early" if rail.early else "guardrail", rail, rail.p
        for one in arm.secondary:
            yield arm.arm, "secondary", one, math.nan
        for segment in arm.segments:
            for value, one in segment.effects.items():
                yield arm.arm, f"{segment.label} {value}", one, math.nan


def checks(report: Report) -> ReportTable:
    """Checks of the pipeline."""
    rows = tuple(
        (check.name, "✗ failed" if check.failed else "✓ fine", check.text) for check in report.checks
    )
    return ReportTable("Checks", (("check", "name"), ("", "pill"), ("", "")), rows)


def numbers(report: Report) -> ReportTable:
    """Counts and built-in means of each arm."""
    counts = (("units", "n"), ("expected", "n"), ("mature", "n"), ("degraded", "n"), ("answers", "n"))
    means = ((f"{title}{MARK}", "n") for title, _, _ in words.BUILT_IN)
    columns = (("arm", "arm"), ("weight", "n"), *counts, *means)
    return ReportTable(NUMBERS, columns, tuple(_numbers(report, n) for n in report.numbers))


def _numbers(report: Report, arm: ArmNumbers) -> Row:
    """Only a split has units that can be expected."""
    expected = f"{arm.expected:,.0f}" if report.judged.spec.mode == "split" else UNKNOWN
    return (
        arm.arm,
        percent(arm.weight),
        f"{arm.units:,}",
        expected,
        f"{arm.matured:,}",
        f"{arm.degraded:,}",
        f"{arm.responses:,}",
        *(
            UNKNOWN if name not in arm.built_in else form.value(arm.built_in[name])
            for _, name, form in words.BUILT_IN
        ),
    )


def chance(p: float) -> str:
    """A p-value.

    >>> chance(0.0312), chance(1e-9), chance(float("nan"))
    ('0.031', '< 0.0001', '')
    """
    if not math.isfinite(p):
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def marked(text: str, anytime: bool) -> str:
    """With a dagger where it may not be looked at often."""
    return text if anytime or not text else f"{text}{MARK}"


def level(alpha: float, planned: float) -> str:
    """What an interval is of; of one of many, for how many it is corrected.

    >>> level(0.05, 0.05), level(0.05 / 3, 0.05)
    ('95%', '98.3%, for 3')
    """
    alpha = alpha or planned
    digits = 3 if alpha >= 0.001 else 5
    many = corrected_for(alpha, planned)
    return f"{100 * (1 - alpha):.{digits}g}%" + (f", for {many:,}" if many > 1 else "")


def corrected_for(alpha: float, planned: float) -> int:
    """How many intervals hold together, of which this is one."""
    return round(planned / alpha) if alpha else 1


def narrower(found: MetricReport | None, plain: MetricReport) -> str:
    """By how much an interval is narrower than the one without the covariate."""
    bounds = (found.low, found.high, plain.low, plain.high) if found else (math.nan,)
    if found is None or not all(map(math.isfinite, bounds)) or plain.high <= plain.low:
        return "width not known"
    less = 1 - (found.high - found.low) / (plain.high - plain.low)
    return f"the past makes the range {abs(less):.0%} {'narrower' if less >= 0 else 'wider'}"
