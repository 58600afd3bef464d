"""An experiment as lines of key and value, its numbers in a few letters: for the terminal and the page.

A number that may not be looked at often has a dagger behind it, wherever it stands.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.experiments.model import (
        ArmSpec,
        Experiment,
        ExperimentPhase,
        MetricSpec,
        NoInterval,
        SegmentSpec,
        Spec,
    )
    from router.experiments.report.model import ArmNumbers, MetricReport, Pairs, Report, VerdictForecast
    from router.types import RouterVariant

UNKNOWN, NOT_YET = "-", "no interval yet"
MARK = "†"
LEGEND = (
    "intervals and p-values may be looked at as often as you like; † marks what may not: averages and"
    " projections without an interval"
)
HOLDOUT = "everybody in experiments against the holdout, which is in none"
BUILT_IN = (
    ("first token", "time_to_first_token", "time"),
    ("total time", "total_time", "time"),
    ("tokens", "completion_tokens", "count"),
    ("cut off", "length_stop", "share"),
    ("errors", "error", "share"),
    ("cancelled", "cancelled", "share"),
)


def at(unix_seconds: float) -> str:
    """A time as people write it.

    >>> at(0.0)
    '1970-01-01 00:00 UTC'
    """
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def pairs_of(experiment: Experiment) -> list[tuple[str, str]]:
    """Everything that is set."""
    spec = experiment.spec
    pairs = [
        ("name", experiment.resource),
        ("state", _state(experiment)),
        ("promoted", experiment.promoted),
        ("hypothesis", spec.hypothesis),
        ("route", spec.route or "the router: all requests that pin no adapter"),
        *((f"arm {arm.name}", arm_line(arm, spec)) for arm in spec.arms),
        ("decides", metric_line(spec.primary)),
        *(("guardrail", metric_line(metric)) for metric in spec.guardrails),
        *(("secondary", metric_line(metric)) for metric in spec.secondary),
        *(("segment", _segment(segment)) for segment in spec.segments),
        ("unit", spec.unit + (f", from label {spec.unit_label}" if spec.unit_label else "")),
        *_rules(spec),
        *((f"phase {phase.number}", _phase(phase)) for phase in experiment.phases),
        ("etag", experiment.etag),
        *(("warning", warning) for warning in getattr(experiment, "warnings", ())),
    ]
    return [(key, value) for key, value in pairs if value]


def _state(experiment: Experiment) -> str:
    reason = f": {experiment.stop_reason}" if experiment.stop_reason else ""
    stopped = f" at {at(experiment.stopped)}" if experiment.stopped else ""
    return f"{experiment.state.value}{stopped}{reason}"


def arm_line(arm: ArmSpec, spec: Spec) -> str:
    """What an arm is and its share."""
    if arm.router:
        what = router_line(arm.router)
    elif arm.adapter:
        what = str(arm.adapter)
    else:
        what = "base" if spec.route else "the router as it is"
    return f"{arm.weight:.4g} of units: {what}{' (control)' if arm.name == spec.control else ''}"


def router_line(variant: RouterVariant) -> str:
    """`router with threshold 0.4`."""
    settings = {
        "threshold": variant.threshold,
        "classifiers": variant.classifiers and ", ".join(variant.classifiers),
        "task first": variant.task_first,
        "domain first": variant.domain_first,
    }
    return "router with " + "; ".join(
        f"{key} {value}" for key, value in settings.items() if value is not None
    )


def _segment(segment: SegmentSpec) -> str:
    return f"label {segment.label}" + (f": {', '.join(segment.values)}" if segment.values else "")


def named(metric: str, cap: float | None) -> str:
    """A metric with its cap.

    >>> named("seconds", 30.0), named("thumbs_up", None)
    ('seconds (capped at 30)', 'thumbs_up')
    """
    return metric if cap is None else f"{metric} (capped at {cap:,g})"


def metric_line(metric: MetricSpec) -> str:
    """`thumbs_up: proportion, more is better`."""
    parts = [metric.kind.value, "more is better" if metric.higher_is_better else "less is better"]
    if metric.kind.rules.has_denominator:
        parts.append(f"per {metric.per}")
    elif not metric.kind.rules.binary:
        parts.append(f"{metric.aggregate.value} of a unit's outcomes")
    if metric.cap is not None and metric.least:
        parts.append(f"{metric.least:,g} at least")
    if metric.missing == "zero":
        parts.append("0 where there is none")
    if metric.window:
        from router.experiments.report.source import duration

        parts.append(f"within {duration(metric.window)}")
    if metric.covariate:
        parts.append("adjusted by the unit's own past")
    if metric.margin:
        margin = f"{metric.margin:.3g}" if not metric.relative else f"{metric.margin:.1%} of control"
        parts.append(f"margin {margin}")
    return f"{named(metric.name, metric.cap)}: {', '.join(parts)}"


def _rules(spec: Spec) -> list[tuple[str, str]]:
    from router.experiments.report.source import duration

    every = f"bandit: weights follow outcomes every {duration(spec.epoch)}"
    modes = {
        "shadow": f"shadow: others answer {spec.shadow_share:.0%} of requests unseen, judged by {spec.judge}",
        "bandit": f"{every}, at least {spec.floor:g} each",
        "holdout": f"holdout: {HOLDOUT}",
    }
    where = f"{spec.namespace}, from {spec.slot[0]:g} to {spec.slot[1]:g}" if spec.namespace else ""
    return [
        ("mode", modes.get(spec.mode.value, "")),
        ("enrolment", f"{spec.enrolment:.1%} of units"),
        ("namespace", where),
        ("window", f"{duration(spec.window)} for outcomes"),
        ("grace", f"{duration(spec.grace)} more for them to arrive" if spec.grace else ""),
        ("level", f"{spec.alpha:g} for all arms together"),
        ("margin", f"{spec.margin:g}" if spec.margin else ""),
        ("equal arms", "allowed, as in an A/A test" if spec.equal_arms else ""),
        ("planned", f"{spec.planned_units:,} units"),
        (
            "promotes",
            f"from {spec.min_units:,} units in each arm, {spec.min_matured:.0%} of them past their window",
        ),
    ]


def _phase(phase: ExperimentPhase) -> str:
    ended = f" to {at(phase.ended)}" if phase.ended else ""
    reason = f", {phase.reason}" if phase.reason else ""
    salts = f"salts: enrolment {phase.enrolment_salt}, variant {phase.variant_salt}"
    return f"{at(phase.started)}{ended}{reason}; {salts}"


def plain(value: float) -> str:
    """Four digits; `-` for what is not known.

    >>> plain(0.57501), plain(1234.5), plain(float("nan"))
    ('0.575', '1,234', '-')
    """
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def signed(value: float) -> str:
    """Three digits with the sign.

    >>> signed(0.07512), signed(-2.0), signed(float("-inf"))
    ('+0.0751', '-2', '-')
    """
    if not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def marked(text: str, anytime: bool) -> str:
    """With a dagger where it may not be looked at often.

    >>> marked("0.5", anytime=False), marked("-", anytime=False), marked("0.5", anytime=True)
    ('0.5†', '-', '0.5')
    """
    return text if anytime or text in ("", UNKNOWN) else f"{text}{MARK}"


def level(alpha: float, planned: float) -> str:
    """Head of a column of intervals; of one of many, for how many it is corrected.

    >>> level(0.05, 0.05), level(0.05 / 3, 0.05)
    ('95% interval', '98.3% interval, corrected for 3')
    """
    alpha = alpha or planned
    digits = 3 if alpha >= 0.001 else 5
    many = corrected_for(alpha, planned)
    corrected = f", corrected for {many:,}" if many > 1 else ""
    return f"{100 * (1 - alpha):.{digits}g}% interval{corrected}"


def corrected_for(alpha: float, planned: float) -> int:
    """How many intervals hold together, of which this is one."""
    return round(planned / alpha) if alpha else 1


def known(found: MetricReport) -> bool:
    """Whether there is an interval."""
    return math.isfinite(found.low) and math.isfinite(found.high)


def difference(found: MetricReport) -> str:
    """The effect; one without an interval is an average like any other."""
    return marked(signed(found.effect), anytime=known(found))


def interval(found: MetricReport, why: bool = True) -> str:
    """`[+0.02, +0.13]`, or that there is none yet, and why."""
    if known(found):
        return marked(f"[{signed(found.low)}, {signed(found.high)}]", found.anytime)
    if math.isfinite(found.low):
        return marked(f"above {signed(found.low)}", found.anytime)
    if math.isfinite(found.high):
        return marked(f"below {signed(found.high)}", found.anytime)
    return f"{NOT_YET}: {waiting(found.waiting)}" if why and found.waiting else NOT_YET


def effect(found: MetricReport) -> str:
    """The effect with its interval, in a sentence."""
    return f"{difference(found)}{' ' if known(found) else ', '}{interval(found)}"


def waiting(found: NoInterval) -> str:
    """Why there is no interval, and how long to wait."""
    more = f"; about {found.units:,} more units" if found.units else ""
    return f"{found.text}{more}"


def chance(p: float) -> str:
    """A p-value.

    >>> chance(0.0312), chance(1e-9), chance(float("nan"))
    ('0.031', '< 0.0001', '-')
    """
    if not math.isfinite(p):
        return UNKNOWN
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def relative(found: MetricReport) -> str:
    """`+15 % [+4 %, +26 %]`; empty where control may be 0, or where there is no interval."""
    share, low, high = found.relative, found.relative_low, found.relative_high
    if share is None or low is None or high is None or not all(map(math.isfinite, (share, low, high))):
        return ""
    return marked(f"{share:+.1%} [{low:+.1%}, {high:+.1%}]", found.anytime)


def narrower(found: MetricReport, plain: MetricReport) -> str:
    """By how much an interval is narrower than the one without the covariate.

    Empty where one of them is not known.
    """
    if not (known(found) and known(plain)) or plain.high <= plain.low:
        return ""
    less = 1 - (found.high - found.low) / (plain.high - plain.low)
    return f"{abs(less):.0%} {'narrower' if less >= 0 else 'wider'}"


def forecast(found: VerdictForecast) -> str:
    """How long it may still take, in words."""
    if found.text:
        return found.text
    pace = f"{found.units_per_day:,.0f} units a day"
    return pace if found.days is None else f"about {found.days:,.3g} more days at {pace}"


def decided_by(pairs: Pairs, unit: str) -> str:
    """`30 users (40 pairs)`: who decided a share of wins, ties left out."""
    decisive = counted(pairs.wins + pairs.losses, "pair")
    return f"{counted(pairs.units, unit)} ({decisive})" if pairs.units else decisive


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "user"), counted(2000, "user")
    ('1 user', '2,000 users')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def margin(found: MetricReport) -> str:
    """A guardrail's margin."""
    return f"{found.margin:.3g}" if not found.margin_relative else f"{found.margin:.1%} of control"


def share_interval(share: float, low: float, high: float) -> str:
    """`+15.0% [+4.0%, +26.0%]`, without an interval that is not known.

    >>> share_interval(0.15, 0.04, 0.26), share_interval(0.15, 0.04, float("inf"))
    ('+15.0% [+4.0%, +26.0%]', '+15.0%†')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return marked(f"{share:+.1%}", anytime=False)
    return f"{share:+.1%} [{low:+.1%}, {high:+.1%}]"


def bounds(low: float | None, high: float | None) -> str:
    """Bounds of an effect.

    >>> bounds(-0.01, 0.25), bounds(None, None)
    ('-0.01 to +0.25', '-')
    """
    return UNKNOWN if low is None or high is None else f"{signed(low)} to {signed(high)}"


def rail(found: MetricReport, early: bool) -> str:
    """The name of a guardrail, with what an early reading is of."""
    from router.experiments.report.source import duration

    return f"{found.metric}, first {duration(found.age)}" if early else found.metric


def read_from(found: MetricReport) -> str:
    """`1,500 units from 7 days on`: how many units a metric is read from, and from what age."""
    from router.experiments.report.source import duration

    units = counted(sum(found.units), "unit")
    return f"{units} from {duration(found.age)} on" if found.age else units


def length(found: MetricReport) -> str:
    """The effect at equal answer length, in words; empty where lengths are not known."""
    if found.length is None:
        return ""
    adjusted = f"{signed(found.length.adjusted)} ± {plain(found.length.half)}"
    treatment, control = (f"{mean:.4g}{MARK}" for mean in (found.length.treatment, found.length.control))
    tokens = f"{treatment} tokens an answer against {control}"
    return f"{adjusted} at equal answer length ({tokens})"


def built_in(numbers: ArmNumbers, name: str, kind: str) -> str:
    """A built-in metric's mean over answers."""
    from router.cli import output

    value = numbers.built_in.get(name)
    if value is None:
        return UNKNOWN
    if kind == "time":
        return output.duration(value)
    return f"{value:.1%}" if kind == "share" else plain(value)


def heading(report: Report) -> str:
    """The verdict in capitals, with its arm."""
    who = f" {report.arm}" if report.arm and report.verdict.decision in ("promote", "stop for harm") else ""
    return f"{report.verdict.decision.upper()}{who}"


def since(report: Report) -> str:
    """`running, phase 1 since ...; report of ...`."""
    phase = next((p for p in report.experiment.phases if p.number == report.phase), None)
    began = f", phase {report.phase} since {at(phase.started)}" if phase else ""
    return f"{report.experiment.state.value}{began}; report of {at(report.time)}"


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
