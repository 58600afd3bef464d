"""A report: a phase judged now from its sums, in plain values, with its course over time for plots.

Only sums by time bucket are read, so a million units cost as little as a thousand. A mode limits the verdict:
shadow arms are not promoted. The verdict decides; secondary metrics, segments, the effect
without its covariate, and the forecast decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from router.extensions.experiments.model import NO_VALUE, WITHIN, MetricSpec, Mode, SegmentSpec
from router.extensions.experiments.report.course import course_of, points_of
from router.extensions.experiments.report.model import (
    ArmNumbers,
    ArmReport,
    MetricReport,
    MissingReport,
    Pairs,
    PlannedProgress,
    Report,
    Ruling,
    SegmentReport,
    VerdictForecast,
)
from router.extensions.experiments.report.notes import notes_of, progress_of
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
from router.extensions.experiments.stats.compare import ArmComparison, ArmPair, SequencePlan, compare
from router.extensions.experiments.stats.missing import Missing
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.stats.planning import size_for, smallest_effect
from router.extensions.experiments.store.series import PairCounts
from router.extensions.experiments.store.store import ExperimentStore
from router.extensions.experiments.verdict import (
    ArmVerdict,
    Course,
    ExperimentVerdict,
    PipelineHealth,
    VerdictDecision,
    judge,
)
from router.extensions.experiments.words import pairs_in_words

POINTS = 200
NOT_STARTED = Ruling(VerdictDecision.UNDECIDED, "not-started", "nobody is assigned before the start")
HOLDOUT = "all experiments together: nothing is promoted or stopped by this. So far: {}"


def report(
    store: ExperimentStore,
    name: str,
    phase: int = 0,
    *,
    now: float,
    points: int = POINTS,
) -> Report:
    """Judge `experiments/name` in a phase (0: the last) at `now`, unix seconds; valid at every look.

    `points`: most points of each arm's plot; 0 leaves them out, which is faster. The largest evidence of
    the sample-ratio test is kept in the store. Raises ExperimentNotFound, InvalidRequest for a phase that
    is not there, StoreDown.
    """
    experiment = store.get(name)
    trail = store.trail(name)
    chosen = phase_of(experiment, phase)
    if chosen is None:
        return Report(experiment, 0, NOT_STARTED, None, (), (), (), trail, (), (), now)
    source = gather(store, experiment, chosen, now)
    course = course_of(source)
    health = health_of(source, course)
    if health.sample_ratio.peak > source.data.peak:
        store.set_peak(name, chosen.number, health.sample_ratio.peak)
    arms, ruling, arm, planned = _verdicts(store, source, health, course)
    if points:
        arms = tuple(_with_details(source, one) for one in arms)
    return Report(
        experiment=experiment,
        phase=chosen.number,
        verdict=ruling,
        arm=arm,
        arms=arms,
        checks=checks_of(source, health),
        numbers=_numbers(source),
        audit=trail,
        points=points_of(source, points),
        notes=notes_of(source),
        time=now,
        forecast=forecast(source, arms, ruling.decision) if points else None,
        planned=planned,
        missing=tuple(_missing_reports(health.missing)),
    )


def _verdicts(
    store: ExperimentStore, source: PhaseEvidence, health: PipelineHealth, course: Course
) -> tuple[tuple[ArmReport, ...], Ruling, str | None, PlannedProgress | None]:
    """Arms, the experiment's ruling and the arm that it is about, and how far it is by its plan."""
    judgement = judge(source.design, source.outcomes(), health, course)
    arms = _arms(store, source, judgement)
    overall = _overall(source, judgement.verdict, arms)
    return arms, overall, judgement.arm, progress_of(source, judgement)


def _missing_reports(found: Mapping[str, Missing]) -> Iterator[MissingReport]:
    """By arm; none where no outcome is missing in it or in control."""
    for arm, one in found.items():
        if one.control or one.treatment:
            bounds = one.lee or (None, None)
            yield MissingReport(arm, one.control, one.treatment, one.settled, *bounds)


def _arms(
    store: ExperimentStore, source: PhaseEvidence, judgement: ExperimentVerdict
) -> tuple[ArmReport, ...]:
    arms = tuple(_arm(source, found) for found in judgement.arms)
    if source.spec.mode is not Mode.SHADOW:
        return arms
    counts = store.paired(source.experiment.name, source.phase.number)
    control = source.spec.control
    return tuple(_shadow_arm(arm, control, Pairs(*counts.get(arm.arm, PairCounts()))) for arm in arms)


def _arm(source: PhaseEvidence, found: ArmVerdict) -> ArmReport:
    design = source.design
    primary, plan = None, design.plan_for(found.arm)
    if found.primary:
        primary = measured_of(found.primary, design.primary, plan)
        primary = replace(primary, age=source.spec.closing)
    return ArmReport(
        arm=found.arm,
        verdict=_allowed(source, found.verdict),
        primary=primary,
        adjusted_p=found.p,
        guardrails=tuple(_guardrail_of(source, rail, plan) for rail in found.guardrails),
        early=tuple(_guardrail_of(source, rail, plan) for rail in found.early),
        blocked=_allowed(source, found.blocked) if found.blocked else None,
    )


def _with_details(source: PhaseEvidence, arm: ArmReport) -> ArmReport:
    """With what decides nothing; for reports that are read, not for looks that only act."""
    if source.spec.mode is Mode.SHADOW:
        return arm
    return replace(
        arm,
        unadjusted=unadjusted(source, arm.arm),
        secondary=secondary(source, arm.arm),
        segments=segments(source, arm.arm),
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
            built_in=dict(data.built_in.get(arm, {})),
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
    if source.spec.mode is Mode.HOLDOUT and ruling.decision in (
        VerdictDecision.PROMOTE,
        VerdictDecision.HARM,
    ):
        return Ruling(VerdictDecision.UNDECIDED, "holdout", HOLDOUT.format(ruling.text))
    return ruling


def _shadow_arm(arm: ArmReport, control: str, pairs: Pairs) -> ArmReport:
    """A shadow arm's report: its pairs in place of a verdict, or with the one that it is invalid."""
    text = f"{pairs_in_words(pairs, control)}; nobody saw these answers"
    ruling = Ruling(VerdictDecision.UNDECIDED, "shadow", text)
    if arm.verdict.decision == VerdictDecision.INVALID:
        return replace(arm, blocked=ruling, pairs=pairs)
    return replace(arm, verdict=ruling, pairs=pairs)


def _overall(source: PhaseEvidence, judged: Ruling, arms: tuple[ArmReport, ...]) -> Ruling:
    """The experiment's ruling."""
    if source.spec.mode is Mode.SHADOW and judged.decision != VerdictDecision.INVALID:
        text = "; ".join(f"{arm.arm}: {arm.verdict.text}" for arm in arms)
        return Ruling(VerdictDecision.UNDECIDED, "shadow", text)
    return _allowed(source, judged)


DAY, WEEK = 86_400.0, 7 * 86_400.0
POWER = 0.8


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


def unadjusted(source: PhaseEvidence, arm: str) -> MetricReport | None:
    """The primary metric as it was measured, where a covariate adjusts it."""
    design = source.design
    if not design.primary.covariate:
        return None
    plain = replace(design.primary, covariate=False)
    control, treatment = (
        total_moments(source.mature, a, design.primary).only(plain.columns) for a in (design.control, arm)
    )
    return _measured(plain, control, treatment, design.plan_for(arm))


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


def forecast(source: PhaseEvidence, arms: tuple[ArmReport, ...], verdict: str) -> VerdictForecast | None:
    """How long a verdict may still take; None where nothing is waited for, and in the first day."""
    if (
        verdict != VerdictDecision.UNDECIDED
        or source.phase.ended is not None
        or source.spec.mode is not Mode.SPLIT
        or source.now - source.phase.started < DAY  # a part of a day tells nothing of a day
    ):
        return None
    per_day = _per_day(source)
    exposed = sum(b.exposed for b in source.data.buckets)
    undecided = [a for a in arms if a.verdict.decision == VerdictDecision.UNDECIDED and a.primary is not None]
    wanted = [units for arm in undecided if (units := _units_for(source, arm)) is not None]
    smallest = min((e for arm in undecided if (e := _smallest(source, arm)) is not None), default=None)
    if not per_day:
        return VerdictForecast(0.0, None, None, smallest)
    units = min(wanted, default=None)
    if units is None:
        return VerdictForecast(per_day, None, None, smallest)
    days = max(0.0, units - exposed) / per_day + source.spec.closing / DAY
    return VerdictForecast(per_day, units, days, smallest)


def _per_day(source: PhaseEvidence) -> float:
    """New units a day over the last week, or since the start."""
    since = max(source.phase.started, source.now - WEEK)
    age = max(source.now - since, 60.0)
    new = sum(b.exposed for b in source.data.buckets if b.start + b.seconds > since)
    return new / age * DAY


def _estimates(source: PhaseEvidence, arm: str) -> tuple[ArmPair, float, float] | None:
    """The arms, a unit's variance, and the arm's share of both."""
    design = source.design
    both = [total_moments(source.mature, a, design.primary) for a in (design.control, arm)]
    if min(moments.n for moments in both) < 20:
        return None
    arms = ArmPair(design.primary, both[0], both[1], design.plan_for(arm))
    spread = float(max(e.spread for e in arms.estimates))
    control, treatment = design.weights[design.control], design.weights[arm]
    return (arms, spread, treatment / (control + treatment)) if spread > 0 else None


def _with_value(source: PhaseEvidence, arm: str) -> float:
    """The part of the units of control and an arm that has a value of the primary metric, of all arms'."""
    design = source.design
    pair = (design.control, arm)
    exposed = sum(exposed_units(source.mature, one) for one in pair)
    known = sum(float(total_moments(source.mature, one, design.primary).n) for one in pair)
    return (design.weights[design.control] + design.weights[arm]) * (known / exposed if exposed else 1.0)


def _units_for(source: PhaseEvidence, arm: ArmReport) -> int | None:
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
    shown = (control, design.primary.sign * gain, spread, share, design.plan_for(arm.arm), POWER)
    size = size_for(design.primary, *shown)
    return math.ceil(size.units / _with_value(source, arm.arm))


def _smallest(source: PhaseEvidence, arm: ArmReport) -> float | None:
    known = _estimates(source, arm.arm)
    if known is None:
        return None
    arms, spread, share = known
    design = source.design
    units = round(design.plan.units * _with_value(source, arm.arm))
    metric, control = design.primary, float(arms.estimates[0].value)
    given = (control, units, spread, share, design.plan.alpha, POWER)
    return smallest_effect(metric, *given)
