"""What a report says beside its verdict, and what gives none.

Secondary metrics, segments, the effect without its covariate, at equal answer length, on all units of a
router experiment, and how long it may still take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from router.experiments.model import MetricSpec, Mode, SegmentSpec
from router.experiments.report.model import (
    ArmReport,
    Forecast,
    Length,
    Measured,
    SegmentReport,
    Waiting,
)
from router.experiments.report.source import (
    Source,
    length_moments,
    metric_of,
    total_moments,
    usable_moments,
)
from router.experiments.stats import (
    Arms,
    Comparison,
    Metric,
    Moments,
    Plan,
    compare,
    corrected,
    length_adjusted,
    segmented,
    size_for,
    smallest_effect,
)
from router.experiments.verdict import Decision

DAY, WEEK = 86_400.0, 7 * 86_400.0
POWER = 0.8


def measured_of(found: Comparison, metric: Metric, plan: Plan, length: Length | None = None) -> Measured:
    """A comparison as plain values."""
    relative, waiting = found.relative_interval, found.waiting
    return Measured(
        metric=found.metric,
        units=found.units,
        values=found.values,
        effect=found.effect,
        low=found.interval.low,
        high=found.interval.high,
        p=found.p,
        method=found.method.value,
        higher_is_better=metric.higher_is_better,
        relative=found.relative if relative else None,
        relative_low=relative.low if relative else None,
        relative_high=relative.high if relative else None,
        length=length,
        waiting=Waiting(waiting.rule, waiting.text, waiting.units) if waiting else None,
        cap=metric.bounds[1] if metric.bounds else None,
        alpha=plan.alpha,
    )


def secondary(source: Source, arm: str) -> tuple[Measured, ...]:
    """Metrics that decide nothing, with intervals that hold all at once, over all arms."""
    specs, design = source.spec.secondary, source.design
    if not specs:
        return ()
    plan = corrected(design.plan_for(arm), len(specs) * len(design.treatments))
    found = (_compared(source, arm, spec, plan) for spec in specs)
    return tuple(one for one in found if one is not None)


def _compared(source: Source, arm: str, spec: MetricSpec, plan: Plan) -> Measured | None:
    metric = metric_of(spec)
    control, treatment = (total_moments(source.deciding, a, metric) for a in (source.design.control, arm))
    return _measured(metric, control, treatment, plan)


def _measured(metric: Metric, control: Moments, treatment: Moments, plan: Plan) -> Measured | None:
    """A comparison, once both arms have two units."""
    if min(control.n, treatment.n) < 2:
        return None
    return measured_of(compare(metric, control, treatment, plan), metric, plan)


def unadjusted(source: Source, arm: str) -> Measured | None:
    """The primary metric as it was measured, where a covariate adjusts it."""
    design = source.design
    if not design.primary.covariate:
        return None
    plain = replace(design.primary, covariate=False)
    control, treatment = (
        total_moments(source.deciding, a, design.primary).only(plain.columns) for a in (design.control, arm)
    )
    return _measured(plain, control, treatment, design.plan_for(arm))


def everyone(source: Source, arm: str) -> Measured | None:
    """Router experiments: the primary metric of all units, those included that nothing changed for."""
    if source.triggered is None:
        return None
    design = source.design
    control, treatment = (total_moments(source.mature, a, design.primary) for a in (design.control, arm))
    return _measured(design.primary, control, treatment, design.plan_for(arm))


def at_equal_length(source: Source, arm: str) -> Length | None:
    """The effect at equal answer length, where both arms have three units with a length."""
    control, treatment = (length_moments(source.deciding, a) for a in (source.spec.control, arm))
    if control is None or treatment is None or min(control.n, treatment.n) < 3:
        return None
    found = length_adjusted(control, treatment, source.design.plan_for(arm))
    return Length(found.adjusted, found.half, *found.lengths)


def segments(source: Source, arm: str) -> tuple[SegmentReport, ...]:
    """The primary metric by each label of the plan."""
    return tuple(_by_label(source, arm, spec) for spec in source.spec.segments)


def _by_label(source: Source, arm: str, spec: SegmentSpec) -> SegmentReport:
    design = source.design
    sums = {a: _by_value(source, a, spec.label) for a in (design.control, arm)}
    empty = Moments.empty(design.primary.columns)
    values = sorted({value for of in sums.values() for value in of})
    both = {v: (sums[design.control].get(v, empty), sums[arm].get(v, empty)) for v in values}
    told = {v: pair for v, pair in both.items() if min(moments.n for moments in pair) >= 2}
    if not told:
        text = f"no value of {spec.label} has two mature units in both arms yet"
        return SegmentReport(spec.label, {}, 1.0, False, text)
    many = len(design.treatments) * len(source.spec.segments)
    plan = design.plan_for(arm)
    found = segmented(design.primary, told, plan, many)
    narrow = corrected(plan, many * len(told))
    effects = {v: measured_of(one, design.primary, narrow) for v, one in found.effects.items()}
    differ = found.differ(plan.alpha)
    return SegmentReport(spec.label, effects, found.p, differ, _told(spec.label, found.p, differ, len(told)))


def _by_value(source: Source, arm: str, label: str) -> Mapping[str, Moments]:
    """Value -> sums of the primary metric over mature units."""
    found: dict[str, Moments] = {}
    for bucket in source.deciding:
        if bucket.arm == arm:
            for (key, value), moments in bucket.segments.items():
                if key == label:
                    found[value] = found[value].merge(moments) if value in found else moments
    return {value: usable_moments(source.design.primary, moments) for value, moments in found.items()}


def _told(label: str, p: float, differ: bool, values: int) -> str:
    corrected_for = f"p = {p:.2g}, corrected for all values and labels"
    if differ:
        return f"the effect differs between values of {label} ({corrected_for})"
    if values == 1:
        return f"all units have one value of {label}"
    return (
        f"no difference between values of {label} is shown ({corrected_for}): the effect of everybody stands"
        " for each of them, whatever one value's own interval says"
    )


def forecast(source: Source, arms: tuple[ArmReport, ...], verdict: str) -> Forecast | None:
    """How long a verdict may still take; None where nothing is waited for."""
    if verdict != Decision.UNDECIDED or source.phase.ended is not None or source.spec.mode is not Mode.SPLIT:
        return None
    per_day, planned = _per_day(source), source.spec.planned_units
    exposed = sum(b.exposed for b in source.data.buckets)
    undecided = [a for a in arms if a.verdict.decision == Decision.UNDECIDED and a.primary is not None]
    wanted = [units for arm in undecided if (units := _units_for(source, arm)) is not None]
    smallest = min((e for arm in undecided if (e := _smallest(source, arm)) is not None), default=None)
    if not per_day:
        return Forecast(0.0, None, None, smallest, "no new units came in the last week")
    pace = f"{per_day:,.0f} new units a day"
    shown = "" if smallest is None else f"; {planned:,} planned units show {smallest:.3g} or more"
    units = min(wanted, default=None)
    days = max(0.0, (units or planned) - exposed) / per_day + source.spec.closing / DAY
    if units is None:
        text = (
            f"as it looks now there is no gain to be shown; the planned size is {_days(days)} away at {pace}"
        )
        return Forecast(per_day, None, None, smallest, text + shown)
    text = f"about {_days(days)} more at {pace}: if the effect is as it looks now, {units:,} units decide"
    return Forecast(per_day, units, days, smallest, text + shown)


def _days(days: float) -> str:
    if days < 1:
        return f"{days * 24:.1f} hours"
    return f"{days:,.0f} days" if days >= 10 else f"{days:.1f} days"


def _per_day(source: Source) -> float:
    """New units a day over the last week, or since the start."""
    since = max(source.phase.started, source.now - WEEK)
    age = max(source.now - since, 60.0)
    new = sum(b.exposed for b in source.data.buckets if b.start + b.seconds > since)
    return new / age * DAY


def _estimates(source: Source, arm: str) -> tuple[Arms, float, float] | None:
    """The arms, a unit's variance, and the arm's share of both."""
    design = source.design
    both = [total_moments(source.deciding, a, design.primary) for a in (design.control, arm)]
    if min(moments.n for moments in both) < 20:
        return None
    arms = Arms(design.primary, both[0], both[1], design.plan_for(arm))
    spread = float(max(e.spread for e in arms.estimates))
    control, treatment = design.weights[design.control], design.weights[arm]
    return (arms, spread, treatment / (control + treatment)) if spread > 0 else None


def _units_for(source: Source, arm: ArmReport) -> int | None:
    """Units of all arms that show the effect as it looks now; None where it does not look better."""
    known = _estimates(source, arm.arm)
    if known is None or arm.primary is None:
        return None
    arms, spread, share = known
    design = source.design
    gain = design.primary.sign * arm.primary.effect + design.margin
    if gain <= 0 or abs(gain) < 0.05 * math.sqrt(float(arms.variance())):
        return None
    control = float(arms.estimates[0].value)
    size = size_for(
        design.primary, control, design.primary.sign * gain, spread, share, design.plan_for(arm.arm)
    )
    both = design.weights[design.control] + design.weights[arm.arm]
    return math.ceil(size.units / both)


def _smallest(source: Source, arm: ArmReport) -> float | None:
    known = _estimates(source, arm.arm)
    if known is None:
        return None
    arms, spread, share = known
    design = source.design
    both = design.weights[design.control] + design.weights[arm.arm]
    units = round(design.plan.units * both)
    metric, control = design.primary, float(arms.estimates[0].value)
    return smallest_effect(metric, control, units, spread, share, design.plan.alpha, POWER)
