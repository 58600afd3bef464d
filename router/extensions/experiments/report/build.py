"""A report: a phase judged now from its sums, in plain values.

Only sums by time bucket are read, so a million units cost as little as a thousand. A mode limits the verdict:
shadow arms are not promoted. The verdict decides; secondary metrics and segments decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from router.extensions.experiments.model import NO_VALUE, WITHIN, MetricSpec, Mode, SegmentSpec
from router.extensions.experiments.report.course import course_of
from router.extensions.experiments.report.model import (
    ArmNumbers,
    ArmReport,
    MetricReport,
    MissingReport,
    Report,
    Ruling,
    SegmentReport,
)
from router.extensions.experiments.report.notes import notes_of
from router.extensions.experiments.report.source import (
    PhaseEvidence,
    answered_units,
    checks_of,
    exposed_units,
    gather,
    health_of,
    metric_of,
    phase_of,
    total_moments,
    usable_moments,
)
from router.extensions.experiments.stats.checks import (
    Guarded,
    corrected,
    segmented,
)
from router.extensions.experiments.stats.compare import ArmComparison, SequencePlan, compare
from router.extensions.experiments.stats.missing import Missing
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.store.store import ExperimentStore
from router.extensions.experiments.verdict import (
    ArmVerdict,
    VerdictDecision,
    judge,
)

NOT_STARTED = Ruling(VerdictDecision.UNDECIDED, "not-started", "nobody is assigned before the start")
HOLDOUT = "all experiments together: nothing is promoted or stopped by this. So far: {}"
SHADOW = "answers of shadow arms are in the log, and nobody saw them"
DAY, WEEK = 86_400.0, 7 * 86_400.0


def report(store: ExperimentStore, name: str, phase: int = 0, *, now: float, details: bool = True) -> Report:
    """Judge `experiments/name` in a phase (0: the last) at `now`, unix seconds; valid at every look.

    `details`: with what decides nothing, secondary metrics and segments. The largest evidence of the
    sample-ratio test is kept in the store. Raises ExperimentNotFound, InvalidRequest for a phase that is not
    there, StoreDown.
    """
    experiment = store.get(name)
    trail = store.trail(name)
    chosen = phase_of(experiment, phase)
    if chosen is None:
        return Report(experiment, 0, NOT_STARTED, None, (), (), (), trail, (), now)
    source = gather(store, experiment, chosen, now)
    course = course_of(source)
    health = health_of(source, course)
    if health.sample_ratio.peak > source.data.peak:
        store.set_peak(name, chosen.number, health.sample_ratio.peak)
    judged = judge(source.design, source.outcomes(), health, course)
    ruling = _allowed(source, judged.verdict)
    return Report(
        experiment=experiment,
        phase=chosen.number,
        verdict=ruling,
        arm=judged.arm,
        arms=tuple(_arm(source, one, details) for one in judged.arms),
        checks=checks_of(source, health),
        numbers=_numbers(source),
        audit=trail,
        notes=notes_of(source),
        time=now,
        units_per_day=units_per_day(source) if ruling.decision == VerdictDecision.UNDECIDED else None,
        missing=tuple(_missing_reports(health.missing)),
    )


def _missing_reports(found: Mapping[str, Missing]) -> Iterator[MissingReport]:
    """By arm; none where no outcome is missing in it or in control."""
    for arm, one in found.items():
        if one.control or one.treatment:
            bounds = one.lee or (None, None)
            yield MissingReport(arm, one.control, one.treatment, one.settled, *bounds)


def _arm(source: PhaseEvidence, found: ArmVerdict, details: bool) -> ArmReport:
    design = source.design
    primary, plan = None, design.plan_for(found.arm)
    if found.primary:
        primary = replace(measured_of(found.primary, design.primary, plan), age=source.spec.closing)
    return ArmReport(
        arm=found.arm,
        verdict=_allowed(source, found.verdict),
        primary=primary,
        adjusted_p=found.p,
        guardrails=tuple(_guardrail_of(source, rail, plan) for rail in found.guardrails),
        early=tuple(_guardrail_of(source, rail, plan) for rail in found.early),
        secondary=secondary(source, found.arm) if details else (),
        segments=segments(source, found.arm) if details else (),
    )


def _numbers(source: PhaseEvidence) -> tuple[ArmNumbers, ...]:
    spec, data, weights = source.spec, source.data, source.design.weights
    total = sum(b.exposed for b in data.buckets)
    names = [metric.name for metric in spec.metrics]
    return tuple(
        ArmNumbers(
            arm=arm,
            units=exposed_units(data.buckets, arm),
            matured=exposed_units(source.mature, arm),
            degraded=sum(b.degraded for b in data.buckets if b.arm == arm),
            responses=data.responses.get(arm, 0),
            expected=total * weight,
            weight=weight,
            answered={name: answered_units(source.mature, arm, name) for name in names},
        )
        for arm, weight in weights.items()
    )


def _guardrail_of(source: PhaseEvidence, found: Guarded, plan: SequencePlan) -> MetricReport:
    """A guardrail: p is the one of the state, or the smaller one while it is open."""
    rail = found.guardrail
    return replace(
        measured_of(found.comparison, rail.metric, plan),
        metric=rail.metric.name.partition(WITHIN)[0],
        age=source.ages[rail.metric.name],
        early=WITHIN in rail.metric.name,
        p=min(found.p_beyond, found.p_within),
        state=found.state.value,
        margin=rail.margin,
        margin_relative=rail.relative,
    )


def _allowed(source: PhaseEvidence, ruling: Ruling) -> Ruling:
    """A ruling as the mode lets it stand."""
    mode, decision = source.spec.mode, ruling.decision
    if mode is Mode.SHADOW and decision != VerdictDecision.INVALID:
        return Ruling(VerdictDecision.UNDECIDED, "shadow", SHADOW)
    if mode is Mode.HOLDOUT and decision in (VerdictDecision.PROMOTE, VerdictDecision.HARM):
        return Ruling(VerdictDecision.UNDECIDED, "holdout", HOLDOUT.format(ruling.text))
    return ruling


def measured_of(found: ArmComparison, metric: ComparedMetric, plan: SequencePlan) -> MetricReport:
    """A comparison as plain values."""
    relative = found.relative_interval
    return MetricReport(
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
        waiting=found.waiting,
        cap=metric.bounds[1] if metric.bounds else None,
        alpha=plan.alpha,
    )


def secondary(source: PhaseEvidence, arm: str) -> tuple[MetricReport, ...]:
    """Metrics that decide nothing, with intervals that hold all at once, over all arms."""
    specs, design = source.spec.secondary, source.design
    if not specs:
        return ()
    plan = corrected(design.plan_for(arm), len(specs) * len(design.treatments))
    found = (_compared(source, arm, spec, plan) for spec in specs)
    return tuple(one for one in found if one is not None)


def _compared(source: PhaseEvidence, arm: str, spec: MetricSpec, plan: SequencePlan) -> MetricReport | None:
    metric = metric_of(spec)
    age = source.ages[spec.name]
    buckets = source.older(age)
    control, treatment = (total_moments(buckets, a, metric) for a in (source.design.control, arm))
    found = _measured(metric, control, treatment, plan)
    return replace(found, age=age) if found else None


def _measured(
    metric: ComparedMetric, control: Moments, treatment: Moments, plan: SequencePlan
) -> MetricReport | None:
    """A comparison, once both arms have two units."""
    if min(control.n, treatment.n) < 2:
        return None
    found = compare(metric, control, treatment, plan)
    return measured_of(found, metric, plan)


def segments(source: PhaseEvidence, arm: str) -> tuple[SegmentReport, ...]:
    """The primary metric by each label of the plan that a request had."""
    named = (spec for spec in source.spec.segments if set(_values_of(source, spec.label)) - {NO_VALUE})
    return tuple(_by_label(source, arm, spec) for spec in named)


def _values_of(source: PhaseEvidence, label: str) -> Iterator[str]:
    """The values of a label that requests had; none where no unit is mature."""
    for bucket in source.mature:
        yield from (value for key, value in bucket.segments if key == label)


def _by_label(source: PhaseEvidence, arm: str, spec: SegmentSpec) -> SegmentReport:
    design = source.design
    sums = {a: _by_value(source, a, spec.label) for a in (design.control, arm)}
    empty = Moments.empty(design.primary.columns)
    values = sorted({value for of in sums.values() for value in of})
    both = {v: (sums[design.control].get(v, empty), sums[arm].get(v, empty)) for v in values}
    compared = {v: pair for v, pair in both.items() if min(moments.n for moments in pair) >= 2}
    if not compared:
        return SegmentReport(spec.label, {}, 1.0, False)
    many = len(design.treatments) * len(source.spec.segments)
    plan = design.plan_for(arm)
    found = segmented(design.primary, compared, plan, many)
    narrow = corrected(plan, many * len(compared))
    effects = {v: measured_of(one, design.primary, narrow) for v, one in found.effects.items()}
    return SegmentReport(spec.label, effects, found.p, found.differ(plan.alpha))


def _by_value(source: PhaseEvidence, arm: str, label: str) -> Mapping[str, Moments]:
    """Value -> sums of the primary metric over mature units."""
    found: dict[str, Moments] = {}
    for bucket in source.mature:
        if bucket.arm == arm:
            for (key, value), moments in bucket.segments.items():
                if key == label:
                    found[value] = found[value].merge(moments) if value in found else moments
    return {value: usable_moments(source.design.primary, moments) for value, moments in found.items()}


def units_per_day(source: PhaseEvidence) -> float | None:
    """New units a day over the last week, or since the start; None where none come, and in the first day."""
    age = source.now - source.phase.started
    if source.phase.ended is not None or source.spec.mode is not Mode.SPLIT or age < DAY:
        return None
    since = max(source.phase.started, source.now - WEEK)
    new = sum(b.exposed for b in source.data.buckets if b.start + b.seconds > since)
    return new / (source.now - since) * DAY
