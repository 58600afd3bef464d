"""A report: what the store has of a phase, judged now, in plain values.

Only sums by time bucket are read, so a million units cost as little as a thousand. What a mode allows to be
said goes no further than its evidence: shadow arms and bandits are not promoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router.experiments.model import Mode
from router.experiments.report.checks import checks_of, health_of
from router.experiments.report.model import ArmNumbers, ArmReport, Length, Measured, Pairs, Report, Ruling
from router.experiments.report.notes import notes_of
from router.experiments.report.series import points_of
from router.experiments.report.source import (
    Source,
    answered_units,
    exposed_units,
    gather,
    latest_weights,
    length_moments,
    phase_of,
    total_moments,
)
from router.experiments.stats import (
    Comparison,
    Guarded,
    LengthAdjusted,
    Paired,
    compare,
    length_adjusted,
    paired,
)
from router.experiments.store.port import Store
from router.experiments.verdict import ArmVerdict, Decision, Judgement, Verdict, judge

POINTS = 200
NOT_STARTED = Ruling(Decision.UNDECIDED.value, "not-started", "nobody is assigned before the start")
BANDIT = "a bandit moves traffic by itself and ends in no promotion; run a split to confirm. So far: {}"


def report(store: Store, name: str, phase: int = 0, *, now: float, points: int = POINTS) -> Report:
    """Judge `experiments/name` in a phase (0: the last) at `now`, unix seconds; valid however often asked.

    `points`: most points of each arm's plot; 0 leaves them out, which is faster. The largest evidence of
    the sample-ratio test is kept in the store. Raises ExperimentNotFound, InvalidRequest for a phase that
    is not there, StoreDown.
    """
    experiment = store.get(name)
    trail = store.trail(name)
    asked = phase_of(experiment, phase)
    if asked is None:
        return Report(experiment, 0, NOT_STARTED, None, (), (), (), trail, (), (), now)
    source = gather(store, experiment, asked, now)
    health = health_of(source)
    if health.sample_ratio.peak > source.data.peak:
        store.set_peak(name, asked.number, health.sample_ratio.peak)
    judgement = judge(source.design, source.outcomes(), health)
    arms = _arms(store, source, judgement)
    return Report(
        experiment=experiment,
        phase=asked.number,
        verdict=overall(source, ruling_of(judgement.verdict), arms),
        arm=judgement.arm,
        arms=arms,
        checks=checks_of(source, health),
        numbers=_numbers(source, latest_weights(trail, asked)),
        audit=trail,
        points=points_of(source, points),
        notes=notes_of(source, health),
        time=now,
    )


def _arms(store: Store, source: Source, judgement: Judgement) -> tuple[ArmReport, ...]:
    arms = tuple(_arm(source, found) for found in judgement.arms)
    if source.spec.mode is not Mode.SHADOW:
        return arms
    counts = store.paired(source.experiment.name, source.phase.number)
    return tuple(of_shadow(arm, _pairs(counts.get(arm.arm, (0, 0, 0)), source.spec.alpha)) for arm in arms)


def _pairs(counts: tuple[int, int, int], alpha: float) -> Pairs:
    wins, losses, ties = counts
    return pairs_of(paired(wins, losses, ties, alpha, units=wins + losses, share_sum=float(wins)))


def _arm(source: Source, found: ArmVerdict) -> ArmReport:
    higher = source.spec.primary.higher_is_better
    primary = None
    if found.primary:
        primary = measured_of(found.primary, higher, _length(source, found.arm))
    return ArmReport(
        arm=found.arm,
        verdict=allowed(source, ruling_of(found.verdict)),
        primary=primary,
        adjusted_p=found.p,
        guardrails=tuple(map(guarded_of, found.guardrails)),
        blocked=allowed(source, ruling_of(found.blocked)) if found.blocked else None,
        everyone=_everyone(source, found.arm),
    )


def _length(source: Source, arm: str) -> Length | None:
    """The effect at equal answer length, where both arms have three units with a length."""
    both = [length_moments(source.deciding, a) for a in (source.spec.control, arm)]
    control, treatment = both
    if control is None or treatment is None or min(control.n, treatment.n) < 3:
        return None
    return length_of(length_adjusted(control, treatment, source.design.plan_for(arm)))


def _everyone(source: Source, arm: str) -> Measured | None:
    """Router experiments: the primary metric of all units, those included that nothing changed for."""
    if source.triggered is None:
        return None
    design = source.design
    control, treatment = (total_moments(source.mature, a, design.primary) for a in (design.control, arm))
    if min(control.n, treatment.n) < 2:
        return None
    found = compare(design.primary, control, treatment, design.plan_for(arm))
    return measured_of(found, design.primary.higher_is_better)


def _numbers(source: Source, now: Mapping[str, float]) -> tuple[ArmNumbers, ...]:
    """`now` are a bandit's present weights."""
    spec, data, weights = source.spec, source.data, source.design.weights
    total = sum(b.exposed for b in data.buckets)
    names = [spec.primary.name, *(g.name for g in spec.guardrails)]
    return tuple(
        ArmNumbers(
            arm=arm,
            units=exposed_units(data.buckets, arm),
            matured=exposed_units(source.mature, arm),
            degraded=sum(b.degraded for b in data.buckets if b.arm == arm),
            responses=data.responses.get(arm, 0),
            expected=total * weight,
            weight=now.get(arm, weight),
            answered={name: answered_units(source.mature, arm, name) for name in names},
            built_in=dict(data.built_in.get(arm, {})),
            triggered=None if source.triggered is None else exposed_units(source.deciding, arm),
        )
        for arm, weight in weights.items()
    )


def measured_of(found: Comparison, higher_is_better: bool, length_of: Length | None = None) -> Measured:
    """A comparison."""
    relative = found.relative_interval
    return Measured(
        metric=found.metric,
        units=found.units,
        values=found.values,
        effect=found.effect,
        low=found.interval.low,
        high=found.interval.high,
        p=found.p,
        method=found.method.value,
        higher_is_better=higher_is_better,
        relative=found.relative if relative else None,
        relative_low=relative.low if relative else None,
        relative_high=relative.high if relative else None,
        length=length_of,
    )


def guarded_of(found: Guarded) -> Measured:
    """A guardrail: p is the one of the state, or the smaller one while it is open."""
    rail = found.guardrail
    return replace(
        measured_of(found.comparison, rail.metric.higher_is_better),
        p=min(found.p_beyond, found.p_within),
        state=found.state.value,
        margin=rail.margin,
        margin_relative=rail.relative,
    )


def length_of(found: LengthAdjusted) -> Length:
    """The effect at equal length."""
    return Length(found.adjusted, found.half, *found.lengths)


def pairs_of(found: Paired) -> Pairs:
    """Pairs of a shadow arm."""
    return Pairs(found.wins, found.losses, found.ties, found.share, found.low, found.high, found.p)


def ruling_of(found: Verdict) -> Ruling:
    """A verdict."""
    return Ruling(found.decision.value, found.rule, found.text)


def allowed(source: Source, said: Ruling) -> Ruling:
    """A ruling as the mode lets it stand."""
    if source.spec.mode is Mode.BANDIT and said.decision == Decision.PROMOTE:
        return Ruling(Decision.UNDECIDED.value, "bandit", BANDIT.format(said.text))
    return said


def of_shadow(arm: ArmReport, pairs: Pairs) -> ArmReport:
    """A shadow arm's report: its pairs in place of a verdict, or beside the one that it is invalid."""
    said = Ruling(Decision.UNDECIDED.value, "shadow", pairs_told(pairs))
    if arm.verdict.decision == Decision.INVALID:
        return replace(arm, blocked=said, pairs=pairs)
    return replace(arm, verdict=said, pairs=pairs)


def overall(source: Source, judged: Ruling, arms: tuple[ArmReport, ...]) -> Ruling:
    """The experiment's ruling."""
    if source.spec.mode is Mode.SHADOW and judged.decision != Decision.INVALID:
        text = "; ".join(f"{arm.arm}: {arm.verdict.text}" for arm in arms)
        return Ruling(Decision.UNDECIDED.value, "shadow", text)
    return allowed(source, judged)


def pairs_told(pairs: Pairs) -> str:
    """Pairs in words."""
    counted = f"{pairs.wins:,} won, {pairs.losses:,} lost, {pairs.ties:,} tied"
    return (
        f"pairs: {counted}; share of wins {pairs.share:.1%} in [{pairs.low:.1%}, {pairs.high:.1%}],"
        f" p = {pairs.p:.2g}; operational, nobody saw these answers"
    )
