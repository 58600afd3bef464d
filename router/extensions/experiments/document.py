"""The report of an experiment as one document of plain texts, for the terminal, the page and the console.

A reader who knows no statistics needs the verdict, the facts, the comparisons and the next step. `statistics`
are for those who check them: rules, p-values and methods.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from router.extensions.experiments import words
from router.extensions.experiments.model import Kind, Mode
from router.extensions.experiments.next_step import NextStep, next_step
from router.extensions.experiments.plan_lines import pairs_of
from router.extensions.experiments.svg import Bar, Gain, range_bars
from router.extensions.experiments.times import WORDS, shares_queue
from router.extensions.experiments.words import change, form_of, named
from router.quantities import NO_RANGE, OPEN, SHARE, UNKNOWN, counted, percent

if TYPE_CHECKING:
    from router.extensions.experiments.report.model import ArmReport, MetricReport, Report, SegmentReport

Row = tuple[str, ...]
Columns = tuple[tuple[str, str], ...]
TONES = {"promote": "ok", "stop for harm": "bad", "invalid": "bad", "undecided": "info"}
MARKS = {"✓": "ok", "✗": "bad"}  # of a reading, to tones
MOST_BARS, COLORS = 40, 4
P_VALUES = (
    "p and every range hold however often the report is read, so p is larger than that of a test that looks"
    " once: at the planned size up to twice as large, before it and after many looks more. With several arms"
    " it is Holm's."
)


@dataclass(frozen=True, slots=True)
class Table:
    """A title, columns of (head, kind), rows, and notes below.

    Kinds: `arm` the name of an arm, `n` a number, `pill` a state with its mark, `` a text.
    """

    title: str
    columns: Columns
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows or self.notes)


@dataclass(frozen=True, slots=True)
class Document:
    """A report in texts. `bars` are SVG, one for each row of `compared`. `checks` are (failed, name,
    finding). `colors` are the classes of arms."""

    name: str
    hypothesis: str
    state: str
    heading: str
    tone: str
    faults: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    step: NextStep
    compared: Table
    bars: tuple[str, ...]
    arms: Table
    checked: str
    checks: tuple[tuple[bool, str, str], ...]
    notes: tuple[str, ...]
    more: tuple[Table, ...]
    statistics: tuple[Table, ...]
    plan: tuple[tuple[str, str], ...]
    history: Table
    colors: dict[str, str]


def document(report: Report) -> Document:
    """The report in texts; of an experiment that was not started, its plan and what to do."""
    begun = bool(report.arms)
    compared = list(comparisons(report))
    return Document(
        name=report.experiment.name,
        hypothesis=report.judged.spec.hypothesis,
        state=words.since(report),
        heading=words.heading(report),
        tone=TONES.get(report.verdict.decision, "") if report.phase else "",
        faults=tuple(words.failed_checks(report)),
        facts=tuple(facts(report)),
        step=next_step(report),
        compared=compared_table(report, compared),
        bars=range_bars([_bar_of(report, one) for one in compared[:MOST_BARS]]),
        arms=arms_table(report),
        checked=words.checks_line(report) if begun else "",
        checks=tuple((one.failed, words.check_title(one), words.check_finding(one)) for one in report.checks),
        notes=tuple(_notes(report)),
        more=tuple(table for table in (missing(report), *segments(report)) if table),
        statistics=(rulings(report), statistics(report)) if begun else (),
        plan=tuple(pairs_of(replace(report.experiment, spec=report.judged.spec))),
        history=history(report),
        colors={arm.name: _color(report, arm.name) for arm in report.judged.spec.arms},
    )


def _color(report: Report, arm: str) -> str:
    """The arm's class; control is grey."""
    spec = report.judged.spec
    names = [one.name for one in spec.arms if one.name != spec.control]
    return f"c{names.index(arm) % COLORS + 1}" if arm in names else "c0"


# -- The first screen


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """An open window, then the difference, how sure it is, the units so far, and the risk of a promotion."""
    spec, usable = report.judged.spec, words.usable(report)
    if not report.phase:
        return
    units, matured = words.units_so_far(report), sum(one.matured for one in report.numbers)
    if young := units - matured:
        window = words.window_in_words(spec)
        yield (
            "Open window",
            f"{young:,} of {counted(units, spec.unit)} did not have their whole window of {window} yet: they"
            " are not compared",
        )
    for line in words.effect_lines(report):
        yield "Difference", line
    measured = [arm for arm in report.arms if arm.primary] if usable and spec.mode is not Mode.SHADOW else []
    if measured:
        yield "How sure", _sure(report, measured)
    yield f"{spec.unit}s so far".capitalize(), words.progress(report)
    for arm in measured if spec.mode is Mode.SPLIT else ():
        name = f"{arm.arm}: " if len(report.arms) > 1 else ""
        yield "Risk if promoted now", f"{name}{_risk(report, arm)}"


def _sure(report: Report, arms: list[ArmReport]) -> str:
    alpha = report.judged.spec.alpha
    right = f"such ranges are right in {100 * (1 - alpha):g} of 100 experiments, however often you look"
    readings = {arm.arm: words.primary_reading(report, arm) for arm in arms}
    shown = [arm for arm, reading in readings.items() if reading != OPEN]
    if len(shown) == len(readings):
        return f"shown, chance alone does not explain it; {right}"
    whose = f" for {' and '.join(shown)} only: chance alone may explain the rest" if shown else ""
    return f"shown{whose}; {right}" if shown else f"not shown, chance alone may explain it; {right}"


def _risk(report: Report, arm: ArmReport) -> str:
    """What the worse end of the range leaves open, and guardrails that are not within their margins."""
    spec, found = report.judged.spec, arm.primary
    worst = math.nan if found is None else found.low if found.higher_is_better else -found.high
    if not math.isfinite(worst):
        text = f"not known: {spec.primary.name} has no range yet"
    else:
        size = words.quantity(spec.primary).margin(abs(worst))
        least = f"at least {size} better" if worst >= 0 else f"up to {size} worse"
        text = f"{spec.primary.name} may be {least}" if worst < 0 else f"none, {spec.primary.name} is {least}"
    unsure = dict.fromkeys(rail.metric for rail in arm.guardrails if rail.state != "within")
    return f"{text}; {' and '.join(unsure)} may be worse than allowed" if unsure else text


def _notes(report: Report) -> Iterator[str]:
    """What to know of how the report came about."""
    if report.judged.spec.mode is Mode.HOLDOUT:
        yield f"{words.HOLDOUT[:1].upper()}{words.HOLDOUT[1:]}."
    for note in report.notes:
        yield f"{note[:1].upper()}{note[1:].rstrip('.')}."


# -- Comparisons


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric of an arm; `guard`: it must not get worse, `decides`: it is the primary one."""

    arm: str
    found: MetricReport
    reading: str
    decides: bool = False
    guard: bool = False


def comparisons(report: Report) -> Iterator[Compared]:
    """The primary metric, guardrails, then metrics that decide nothing; none of a shadow experiment."""
    if report.judged.spec.mode is Mode.SHADOW:
        return
    for arm in report.arms:
        if arm.primary:
            yield Compared(arm.arm, arm.primary, words.primary_reading(report, arm), decides=True)
    rails = [(arm.arm, one) for arm in report.arms for one in arm.rails]
    for arm_name, one in _by_metric(rails):
        yield Compared(arm_name, one, words.guarded(report, one), guard=True)
    others = [(arm.arm, one) for arm in report.arms for one in arm.secondary]
    for arm_name, one in _by_metric(others):
        yield Compared(arm_name, one, words.reading(report, one))


def _by_metric(found: list[tuple[str, MetricReport]]) -> Iterator[tuple[str, MetricReport]]:
    order = list(dict.fromkeys((one.metric, one.early) for _, one in found))
    yield from sorted(found, key=lambda pair: order.index((pair[1].metric, pair[1].early)))


def compared_table(report: Report, found: list[Compared]) -> Table:
    """All comparisons with control."""
    spec = report.judged.spec
    guards = any(one.guard for one in found)
    several = len(report.arms) > 1
    columns: Columns = (
        ("metric", ""),
        *([("arm", "arm")] if several else []),
        *((f"{spec.unit}s", "n"), (spec.control, "n")),
        ("this arm" if several else "".join(arm.arm for arm in report.arms), "n"),
        *((f"difference from {spec.control}", "i"), ("", "pill")),
        *([("allowed", "")] if guards else []),
    )
    rows = tuple(
        (
            words.labelled(one.found),
            *([one.arm] if several else []),
            f"{sum(one.found.units):,}",
            *(form_of(report.judged, one.found).value(value) for value in one.found.values),
            change(form_of(report.judged, one.found), one.found),
            one.reading,
            *([_allowed(report, one)] if guards else []),
        )
        for one in found
    )
    pairs = [(one.arm, one.found) for one in found]
    further = [one.found for one in found if not one.decides and not one.guard]
    notes = (*_awaited(report, pairs), *_many(report, further))
    return Table(f"Differences from {spec.control}; {spec.primary.name} decides", columns, rows, notes)


def _allowed(report: Report, one: Compared) -> str:
    return words.allowed(form_of(report.judged, one.found), one.found) if one.guard else ""


def _many(report: Report, found: Iterable[MetricReport]) -> tuple[str, ...]:
    """A note on ranges that hold together."""
    many = max((corrected_for(one.alpha, report.judged.spec.alpha) for one in found), default=1)
    text = f"These ranges are wider, so that all {many:,} of them hold at once"
    return (f"{text}: one of many numbers looks good by chance.",) if many > 1 else ()


def _awaited(report: Report, found: Iterable[tuple[str, MetricReport]]) -> tuple[str, ...]:
    """Why there are no ranges yet, and which metrics compare little."""
    unit, compared = report.judged.spec.unit, list(found)
    waits = (
        f"{named(one.metric, one.cap)}, {arm}: {NO_RANGE}: {words.waiting(one.waiting, unit)}"
        for arm, one in compared
        if one.waiting is not None and not (math.isfinite(one.low) or math.isfinite(one.high))
    )
    shared = dict.fromkeys(one.metric for _, one in compared if shares_queue(one.metric))
    means = {m.name: m for m in report.judged.spec.metrics if m.kind is Kind.MEAN and not m.built_in}
    per = dict.fromkeys(one.metric for _, one in compared if one.metric in means)
    over = (f"{name} is {words.per_unit(means[name], unit)}." for name in per)
    return (*waits, *over, *(f"{metric}: {WORDS}." for metric in shared))


def _bar_of(report: Report, one: Compared) -> Bar:
    """In points of a share, else in percent of control's value, so that both are parts of 100; what is better
    lies to the right."""
    found, share = one.found, form_of(report.judged, one.found) is SHARE
    values: tuple[float | None, ...] = (found.effect, found.low, found.high)
    if not share:
        values = (found.relative, found.relative_low, found.relative_high)
    effect, low, high = (math.nan if value is None else 100 * value for value in values)
    gain: Gain | None = (effect, low, high) if found.higher_is_better else (-effect, -high, -low)
    if not math.isfinite(effect) or math.isnan(low) or math.isnan(high):
        gain = None
    return Bar(gain, _limit(found, share) if one.guard else None, MARKS.get(one.reading[:1], ""), one.decides)


def _limit(found: MetricReport, share: bool) -> float | None:
    """The margin on the scale of the bars; None where the metric must improve, or it cannot be placed."""
    control = abs(found.values[0])
    if not found.margin or not math.isfinite(control):
        return None
    if share:
        return -100 * found.margin * (control if found.margin_relative else 1.0)
    if found.margin_relative:
        return -100 * found.margin
    return -100 * found.margin / control if control else None


# -- Arms, and what else is counted


def arms_table(report: Report) -> Table:
    """Each arm with its version, its part of the units, and what it answered."""
    spec = report.judged.spec
    numbers = {one.arm: one for one in report.numbers}
    total = words.units_so_far(report)
    columns: Columns = (
        *(("arm", "arm"), ("answers", ""), ("planned", "n"), (f"{spec.unit}s", "n"), ("share", "n")),
        *(("had their time", "n"), (f"with {spec.primary.name}", "n"), ("requests", "n")),
        ("answered by another", "n"),
    )
    rows = []
    for arm in spec.arms:
        who = str(arm.adapter) if arm.adapter else "base" if spec.route else ""
        state = " (control)" if arm.name == spec.control else ""
        one = numbers.get(arm.name)
        counts = (
            (
                *(f"{one.units:,}", percent(one.units / total) if total else UNKNOWN, f"{one.matured:,}"),
                *(f"{one.answered.get(spec.primary.name, 0):,}", f"{one.responses:,}", f"{one.degraded:,}"),
            )
            if one
            else ("",) * 6
        )
        rows.append((arm.name, f"{who}{state}", percent(arm.weight), *counts))
    return Table("Arms", columns, tuple(rows))


def missing(report: Report) -> Table:
    """Units without an outcome, and by how much that may move the effect."""
    spec = report.judged.spec
    form = words.quantity(spec.primary)

    def between(low: float | None, high: float | None) -> str:
        if low is None or high is None:
            return UNKNOWN
        return f"{form.difference(low)} to {form.difference(high)}"

    rows = tuple(
        (
            *(one.arm, percent(one.control), percent(one.treatment), between(one.lee_low, one.lee_high)),
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
    return Table(title, columns, rows, (note,) if rows else ())


def segments(report: Report) -> Iterator[Table]:
    """The primary metric by label, a table for each label and arm."""
    for arm in report.arms:
        for found in arm.segments:
            yield _segment(report, arm, found)


def _segment(report: Report, arm: ArmReport, found: SegmentReport) -> Table:
    spec = report.judged.spec
    form = words.quantity(spec.primary)
    columns = (
        *((found.label, ""), (f"{spec.unit}s", "n"), (spec.control, "n")),
        *((arm.arm, "n"), ("difference", "i"), ("", "pill")),
    )
    rows = tuple(
        (
            *(value, f"{sum(one.units):,}", *(form.value(of) for of in one.values), change(form, one)),
            words.reading(report, one),
        )
        for value, one in found.effects.items()
    )
    waits = _awaited(report, found.effects.items())
    notes = (*waits, words.differs(found), *_many(report, found.effects.values()))
    return Table(
        f"{spec.primary.name} by {found.label}: {arm.arm} against {spec.control}", columns, rows, notes
    )


# -- Statistics


def rulings(report: Report) -> Table:
    """Verdicts as programs read them."""
    verdicts = [("all", report.verdict), *((arm.arm, arm.verdict) for arm in report.arms)]
    rows = tuple((arm, one.decision, one.rule, one.text) for arm, one in verdicts)
    return Table("Verdicts by their rules", (("arm", "arm"), ("verdict", ""), ("rule", ""), ("", "")), rows)


def statistics(report: Report) -> Table:
    """Every comparison with its interval's level, p-value and method."""
    columns = (
        *(("metric", ""), ("", ""), ("arm", "arm"), ("difference", "i"), ("relative", "i")),
        *(("level", "n"), ("p", "n"), ("method", ""), ("state", "")),
    )
    rows = tuple(
        (
            *(named(found.metric, found.cap), what, arm, change(form_of(report.judged, found), found)),
            *(words.relative(found), level(found.alpha, report.judged.spec.alpha), chance(p)),
            *(found.method, found.state),
        )
        for arm, what, found, p in _measured(report)
    )
    spread = (
        f"{found.label}, {arm.arm}: effects differ between values: p = {chance(found.p)}"
        for arm in report.arms
        for found in arm.segments
    )
    return Table("Statistics", columns, rows, (*spread, P_VALUES))


def _measured(report: Report) -> Iterator[tuple[str, str, MetricReport, float]]:
    """Arm, what it is, the comparison, and its p-value; that of the primary metric is Holm's."""
    for arm in report.arms:
        if arm.primary:
            yield arm.arm, "decides", arm.primary, arm.adjusted_p
        for rail in arm.rails:
            yield arm.arm, "guardrail, early" if rail.early else "guardrail", rail, rail.p
        for one in arm.secondary:
            yield arm.arm, "secondary", one, math.nan
        for segment in arm.segments:
            for value, one in segment.effects.items():
                yield arm.arm, f"{segment.label} {value}", one, math.nan


def history(report: Report) -> Table:
    """What was done, the last act first."""
    columns = tuple((head, "") for head in ("when", "who", "what", "why", "numbers"))
    rows = tuple(
        (
            *(words.at(entry.time), entry.actor, entry.act, entry.reason),
            json.dumps(dict(entry.detail), ensure_ascii=False) if entry.detail else "",
        )
        for entry in reversed(report.audit)
    )
    return Table("History", columns, rows)


def chance(p: float) -> str:
    """A p-value.

    >>> chance(0.0312), chance(1e-9), chance(float("nan"))
    ('0.031', '< 0.0001', '')
    """
    if not math.isfinite(p):
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


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
