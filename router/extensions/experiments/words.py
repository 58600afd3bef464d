"""A report in sentences, for readers who know no statistics: the terminal, the page and the console.

Rule names, p-values and methods stand nowhere here: they are in the report's fields and behind the fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from router.extensions.experiments.model import Kind, Lifecycle, MetricSpec, Mode, Unanswered
from router.extensions.experiments.times import TO_FIRST, TOTAL, shares_queue
from router.quantities import OPEN, PLAIN, SHARE, TIME, WORSE, Quantity, counted, percent
from router.quantities import reading as reading_of
from router.quantities import relative as relative_change

if TYPE_CHECKING:
    from router.extensions.experiments.model import Experiment, NoInterval, Spec
    from router.extensions.experiments.report.model import (
        ArmReport,
        MetricReport,
        PipelineCheck,
        Report,
        Ruling,
        SegmentReport,
    )

TIME_UNITS = (("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))
HOLDOUT = "everybody in experiments against the holdout, which is in none"
UNSEEN = "They do not say what users prefer."
FORMS: Mapping[str, Quantity] = {
    TO_FIRST: TIME,
    TOTAL: TIME,
    "completion_tokens": Quantity(unit="tokens"),
    **dict.fromkeys(("length_stop", "error", "cancelled"), SHARE),
}
"""Of built-in metrics."""
_WITHIN, _BEYOND = "within", "beyond"
GUARDED: Mapping[str, str] = {
    _WITHIN: "✓ within what is allowed",
    _BEYOND: "✗ worse than allowed",
}


# -- Numbers of a metric


def quantity(metric: MetricSpec) -> Quantity:
    """The form of a metric's numbers."""
    per_answer = metric.kind is not Kind.RATIO or metric.per == "responses"
    return quantity_of(metric.name, metric.kind) if per_answer else PLAIN


def quantity_of(name: str, kind: Kind) -> Quantity:
    """The form of a metric's numbers. A metric with `seconds` in its name is a time.

    >>> quantity_of("total_time", Kind.MEAN).scale, quantity_of("likes", Kind.MEAN).scale
    (<Scale.SECONDS: 'seconds'>, <Scale.NUMBER: 'number'>)
    """
    if kind.rules.binary:
        return SHARE
    return FORMS.get(name) or (TIME if "seconds" in name.split("_") else PLAIN)


def form_of(experiment: Experiment, found: MetricReport) -> Quantity:
    """The form of a comparison's numbers; a built-in metric has one even where the plan has it no more."""
    metric = next((metric for metric in experiment.spec.metrics if metric.name == found.metric), None)
    return FORMS.get(found.metric, PLAIN) if metric is None else quantity(metric)


def change(form: Quantity, found: MetricReport) -> str:
    """`+28.5 points (17.0 to 38.0)`; a mean also as a share of control's value."""
    text = form.change(found.effect, found.low, found.high)
    share = "" if form is SHARE else relative(found)
    return f"{text}, {share}" if share else text


def relative(found: MetricReport) -> str:
    """The change as a share of control's value; empty where it is not known."""
    return relative_change(found.relative, found.relative_low, found.relative_high)


def reading(report: Report, found: MetricReport) -> str:
    """`✓ better`, `✗ worse` or `? not clear yet`, by the range; empty where the data have a fault."""
    return reading_of(found.low, found.high, found.higher_is_better) if usable(report) else ""


def usable(report: Report) -> bool:
    """Whether the data have no fault."""
    return report.verdict.decision != "invalid"


def guarded(report: Report, found: MetricReport) -> str:
    """What is known of a guardrail; empty where the data have a fault."""
    known = GUARDED.get(found.state, OPEN) if usable(report) else ""
    queued = known and found.state == _WITHIN and shares_queue(found.metric)
    return f"{known}, in one queue" if queued else known


def allowed(form: Quantity, found: MetricReport) -> str:
    """A guardrail's margin."""
    if not found.margin:
        return "must improve"
    if found.margin_relative:
        return f"{percent(found.margin)} worse"
    return f"{form.margin(found.margin)} worse"


def direction(higher_is_better: bool) -> str:
    """Which way is good."""
    return "more is better" if higher_is_better else "less is better"


def named(metric: str, cap: float | None) -> str:
    """A metric with its cap.

    >>> named("seconds", 30.0), named("thumbs_up", None)
    ('seconds (capped at 30)', 'thumbs_up')
    """
    return metric if cap is None else f"{metric} (capped at {cap:,g})"


def labelled(found: MetricReport) -> str:
    """A metric with its cap and which way is good."""
    cap = "" if found.cap is None else f"capped at {found.cap:,g}; "
    early = f", first {age_of(found)}" if found.early else ""
    return f"{found.metric}{early} ({cap}{direction(found.higher_is_better)})"


def age_of(found: MetricReport) -> str:
    """From what age of its units a metric is read."""
    return duration(found.age)


def waiting(found: NoInterval, unit: str) -> str:
    """Why there is no range, and how long to wait."""
    more = f"; about {counted(found.units, f'more {unit}')}" if found.units else ""
    return f"{found.text}{more}"


def differs(found: SegmentReport) -> str:
    """Whether the effect differs between values of a label, in words."""
    if found.differ:
        return f"The difference is not the same for all values of {found.label}: read each row."
    if not found.effects:
        return f"No value of {found.label} has two units in both arms yet."
    if len(found.effects) == 1:
        return f"All units have one value of {found.label}."
    return (
        f"It is not shown that the difference depends on {found.label}: what holds for everybody is the best"
        " guess for each row."
    )


# -- The verdict


def units_of(experiment: Experiment) -> str:
    """The plural of what is counted."""
    return f"{experiment.spec.unit}s"


def heading(report: Report) -> str:
    """The verdict in one sentence, its first word in capitals."""
    experiment, verdict = report.judged, report.verdict
    control = experiment.spec.control
    if report.phase == 0:
        return f"NOT STARTED: no {experiment.spec.unit} takes part yet."
    if verdict.decision == "undecided" and report.arm is None and len(report.arms) > 1:
        return f"{_first_word(report)}: no arm may be promoted yet."
    if verdict.decision == "stop for harm" and report.arm is None:
        return f"STOP: all arms are worse than {control}."
    return sentence(report, verdict, report.arm or (report.arms[0].arm if report.arms else ""))


def sentence(report: Report, verdict: Ruling, arm: str) -> str:
    """A verdict on one arm."""
    experiment = report.judged
    control, primary = experiment.spec.control, experiment.spec.primary
    match verdict.decision:
        case "promote":
            if verdict.rule == "primary-not-worse":
                margin = quantity(primary).margin(experiment.spec.margin)
                return f"PROMOTE {arm}: it is not worse than {control} by {margin} or more."
            return f"PROMOTE {arm}: it is better than {control}."
        case "stop for harm":
            worse = _beyond(report, arm) if verdict.rule == "guardrail" else ""
            what = f"it makes {worse} worse than the plan allows" if worse else f"it is worse than {control}"
            return f"STOP {arm}: {what}."
        case "invalid":
            return "INVALID: do not use these numbers. The data have a fault."
    return f"{_first_word(report)}: {_undecided(report, verdict, arm)}"


def _beyond(report: Report, arm: str) -> str:
    found = next((one for one in report.arms if one.arm == arm), None)
    names = [one.metric for one in found.rails if one.state == _BEYOND] if found else []
    return " and ".join(dict.fromkeys(names))


def _first_word(report: Report) -> str:
    if report.judged.spec.mode in (Mode.SHADOW, Mode.HOLDOUT):
        return "RESULT"
    if report.experiment.state is Lifecycle.STOPPED:
        return "UNDECIDED"
    return "GIVE UP" if gives_up(report) else "WAIT"


def _undecided(report: Report, verdict: Ruling, arm: str) -> str:
    spec = report.judged.spec
    units = f"{spec.unit}s"
    match verdict.rule:
        case "primary-open":
            return f"no difference between {arm} and {spec.control} is shown{_yet(report)}."
        case "planned-size-reached":
            size = f"{spec.planned_units:,} {units}"
            return f"no difference between {arm} and {spec.control} is found with the planned {size}."
        case "guardrail-open":
            shown = "not worse" if spec.margin else "better"
            names = _open_guardrails(report, arm)
            return f"{arm} is {shown} on {spec.primary.name}, but it may make {names} worse than allowed."
        case "missing-open":
            shown = "not worse" if spec.margin else "better"
            who = f"other {units} answer with {arm}, which may be the whole difference"
            return f"{arm} looks {shown} on {spec.primary.name}, but it is possible that {who}."
        case "too-few-units" if few := _too_few(report, arm):
            return few
        case "immature":
            return _open_window(report)
        case "shadow":
            return f"{verdict.text}. {UNSEEN}"
        case "holdout":
            return "all experiments together against the holdout. Nothing is promoted or stopped by this."
    return f"{verdict.text.rstrip('.')}."


def _open_window(report: Report) -> str:
    """How many units had their time."""
    spec, matured = report.judged.spec, sum(one.matured for one in report.numbers)
    units, many = counted(units_so_far(report), spec.unit), f"{matured:,}" if matured else "none"
    return (
        f"of {units} {many} had the whole window of {window_in_words(spec)} yet, and outcomes count after it."
    )


def _too_few(report: Report, arm: str) -> str:
    """Where the plan asks for more; empty where the metric's own range is waited for."""
    spec = report.judged.spec
    found = next((one.primary for one in report.arms if one.arm == arm), None)
    if found is None:
        return f"an arm has fewer than two {spec.unit}s with an outcome."
    have = min(found.units)
    needs = f"the smaller arm has {counted(have, spec.unit)} with an outcome, {spec.min_units:,} are needed."
    return needs if have < spec.min_units else ""


def _yet(report: Report) -> str:
    return "" if report.experiment.state is Lifecycle.STOPPED or gives_up(report) else " yet"


def _open_guardrails(report: Report, arm: str) -> str:
    found = next((one for one in report.arms if one.arm == arm), None)
    unsure = [one.metric for one in found.guardrails if one.state != _WITHIN] if found else []
    return " or ".join(unsure) or "a guardrail"


def effect_lines(report: Report) -> list[str]:
    """The number behind the verdict, a line for each arm: the first thing to read after it."""
    return [line for arm in report.arms for line in _arm_lines(report, arm)]


def _arm_lines(report: Report, arm: ArmReport) -> list[str]:
    experiment, lines = report.judged, list[str]()
    if not usable(report):
        return lines
    if arm.verdict.decision == "stop for harm" and arm.verdict.rule == "guardrail":
        for found in arm.rails:
            if found.state == _BEYOND:
                limit = allowed(form_of(experiment, found), found)
                lines.append(f"{_line(report, arm.arm, found, WORSE)} At most {limit} is allowed.")
    if arm.primary:
        lines.append(_line(report, arm.arm, arm.primary, primary_reading(report, arm)))
    return lines


def primary_reading(report: Report, arm: ArmReport) -> str:
    """What is known of the primary metric, all arms considered; empty where the data have a fault."""
    if arm.primary is None or not usable(report):
        return ""
    shown = arm.adjusted_p <= report.judged.spec.alpha or len(report.arms) < 2
    return reading(report, arm.primary) if shown else OPEN


def _line(report: Report, arm: str, found: MetricReport, read: str) -> str:
    form, control = form_of(report.judged, found), report.judged.spec.control
    units = f" of {units_of(report.judged)}" if form is SHARE else _per_unit(report, found)
    values = f"{form.value(found.values[1])}{units} with {arm}, {form.value(found.values[0])} with {control}"
    name = f"{arm}, " if len(report.arms) > 1 else ""
    way = direction(found.higher_is_better).capitalize()
    return f"{name}{named(found.metric, found.cap)}: {change(form, found)} {read}: {values}. {way}."


def _per_unit(report: Report, found: MetricReport) -> str:
    """` per user with a value`, of means of what clients record."""
    metric = next((one for one in report.judged.spec.metrics if one.name == found.metric), None)
    if metric is None or metric.kind is not Kind.MEAN or metric.built_in:
        return ""
    return f" {per_unit(metric, report.judged.spec.unit)}"


def per_unit(metric: MetricSpec, unit: str) -> str:
    """What a mean is over."""
    return f"per {unit}{' with a value' if metric.missing is not Unanswered.ZERO else ''}"


def gives_up(report: Report) -> bool:
    """Whether more waiting is of no use: all planned units had their time."""
    return report.verdict.rule == "planned-size-reached"


def short_verdict(report: Report) -> str:
    """The verdict in a few words: `PROMOTE new`, `WAIT`."""
    return heading(report).partition(":")[0]


def difference(report: Report) -> str:
    """The primary metric's differences in one line."""
    form = quantity(report.judged.spec.primary)
    found = ((arm.arm, arm.primary) for arm in report.arms if arm.primary)
    lines = (f"{name} {form.change(one.effect, one.low, one.high)}" for name, one in found)
    return "; ".join(lines) if usable(report) else ""


def units_so_far(report: Report) -> int:
    """Units that take part, of all arms."""
    return sum(one.units for one in report.numbers)


def progress(report: Report) -> str:
    """`1,200 of 5,000 planned users (24 %)`."""
    spec, (so_far, planned) = report.judged.spec, progress_of(report)
    share = so_far / planned if planned else 0.0
    return f"{so_far:,} of {planned:,} planned {spec.unit}s ({100 * share:.0f} %)"


def progress_of(report: Report) -> tuple[int, int]:
    """Units so far, and how many are planned."""
    return units_so_far(report), report.judged.spec.planned_units


def since(report: Report) -> str:
    """`running since ...; as of ...`."""
    experiment = report.experiment
    phase = next((p for p in experiment.phases if p.number == report.phase), None)
    parts = [experiment.state.value]
    if phase:
        parts[0] += f" since {at(phase.started)}" if phase.ended is None else f", begun {at(phase.started)}"
        if len(experiment.phases) > 1:
            parts.append(f"phase {report.phase} of {len(experiment.phases)}")
    if experiment.stop_reason:
        parts[0] += f": {experiment.stop_reason}"
    return "; ".join([*parts, f"as of {at(report.time)}"])


# -- Checks of the data

CHECKS: Mapping[str, tuple[str, str]] = {
    "sample-ratio": (
        "Shares of the arms",
        "Look for requests that fail, are sent twice or carry no unit in one arm",
    ),
    "missing-outcomes": (
        "Missing outcomes",
        'Find out why outcomes of that arm do not arrive, or count a missing outcome as 0 (missing = "zero")',
    ),
    "crossed-units": ("One arm for each of them", "Send the same unit with every request of one {unit}"),
    "mixed-digests": (
        "Arms that stay the same",
        "Keep the adapter, the base and the router of each arm as they are",
    ),
    "maturity": ("Time for outcomes", "Wait"),
}
"""What each check is called, and what to do when it fails."""


def check_title(check: PipelineCheck) -> str:
    """The name of a check for people."""
    return CHECKS[check.name][0] if check.name in CHECKS else check.name.replace("-", " ").capitalize()


def check_finding(check: PipelineCheck) -> str:
    """What a check found, as a sentence."""
    return f"{check.text[:1].upper()}{check.text[1:].rstrip('.')}."


def failed_checks(report: Report) -> list[str]:
    """What is wrong: a sentence for each check that failed."""
    return [check_finding(check) for check in report.checks if check.failed]


def checks_line(report: Report) -> str:
    """How many checks are fine, and which are not; empty where nothing is checked yet."""
    failed = [check_title(check) for check in report.checks if check.failed]
    many = len(report.checks)
    if failed:
        return f"✗ {len(failed)} of {many} checks failed: {', '.join(failed)}."
    return f"✓ All {many} checks of the data are fine." if many else ""


def repairs(report: Report) -> str:
    """What to do about all that failed."""
    failed = [check.name for check in report.checks if check.failed and check.name in CHECKS]
    found = [CHECKS[name][1].format(unit=report.judged.spec.unit) for name in failed]
    text = ". ".join(found) or "Repair what the failed check names"
    return f"{text[:1].lower()}{text[1:]}"


# -- Times


def duration(seconds: float) -> str:
    """A length of time.

    >>> duration(86400), duration(5400), duration(2.5)
    ('1 day', '1.5 hours', '2.5 seconds')
    """
    unit, length = next(((u, n) for u, n in TIME_UNITS if seconds >= n), TIME_UNITS[-1])
    number = seconds / length
    return f"{number:.3g} {unit}{'' if number == 1 else 's'}"


def window_in_words(spec: Spec) -> str:
    """How long outcomes count."""
    return duration(spec.window) + (f" and its grace of {duration(spec.grace)}" if spec.grace else "")


def at(unix_seconds: float) -> str:
    """A time as people write it.

    >>> at(0.0)
    '1970-01-01 00:00 UTC'
    """
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
