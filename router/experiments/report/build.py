"""A report: what the store has of a phase, judged now, in plain values.

Only sums by time bucket are read, so a million units cost as little as a thousand. What a mode allows to be
said goes no further than its evidence: shadow arms and bandits are not promoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router.experiments.model import Mode
from router.experiments.report import bandit, beside
from router.experiments.report.checks import checks_of, health_of
from router.experiments.report.model import ArmNumbers, ArmReport, Measured, Pairs, Report, Ruling
from router.experiments.report.notes import notes_of
from router.experiments.report.series import points_of
from router.experiments.report.source import (
    Source,
    answered_units,
    exposed_units,
    gather,
    latest_weights,
    phase_of,
)
from router.experiments.stats import Guarded, Paired, Plan, paired
from router.experiments.store.port import PairCounts, Store
from router.experiments.verdict import ArmVerdict, Decision, Health, Judgement, Verdict, judge

POINTS = 200
NOT_STARTED = Ruling(Decision.UNDECIDED.value, "not-started", "nobody is assigned before the start")
HOLDOUT = "a read-out of all experiments together: nothing is promoted or stopped by it. So far: {}"


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
    if source.spec.mode is Mode.BANDIT:
        arms, said, arm = of_bandit(bandit.judged(source), health)
    else:
        judgement = judge(source.design, source.outcomes(), health)
        arms = _arms(store, source, judgement)
        said, arm = overall(source, ruling_of(judgement.verdict), arms), judgement.arm
    if points:
        arms = tuple(_told(source, one) for one in arms)
    return Report(
        experiment=experiment,
        phase=asked.number,
        verdict=said,
        arm=arm,
        arms=arms,
        checks=checks_of(source, health),
        numbers=_numbers(source, latest_weights(trail, asked)),
        audit=trail,
        points=points_of(source, points),
        notes=notes_of(source, health),
        time=now,
        forecast=beside.forecast(source, arms, said.decision) if points else None,
    )


def _arms(store: Store, source: Source, judgement: Judgement) -> tuple[ArmReport, ...]:
    arms = tuple(_arm(source, found) for found in judgement.arms)
    if source.spec.mode is not Mode.SHADOW:
        return arms
    counts = store.paired(source.experiment.name, source.phase.number)
    return tuple(of_shadow(arm, _pairs(counts.get(arm.arm, PairCounts()), source.spec.alpha)) for arm in arms)


def _pairs(c: PairCounts, alpha: float) -> Pairs:
    return pairs_of(paired(c.wins, c.losses, c.ties, alpha, units=c.units, share_sum=c.share_sum))


def _arm(source: Source, found: ArmVerdict) -> ArmReport:
    design = source.design
    primary, plan = None, design.plan_for(found.arm)
    if found.primary:
        length = beside.at_equal_length(source, found.arm)
        primary = beside.measured_of(found.primary, design.primary, plan, length)
    return ArmReport(
        arm=found.arm,
        verdict=allowed(source, ruling_of(found.verdict)),
        primary=primary,
        adjusted_p=found.p,
        guardrails=tuple(guarded_of(rail, plan) for rail in found.guardrails),
        blocked=allowed(source, ruling_of(found.blocked)) if found.blocked else None,
        everyone=beside.everyone(source, found.arm),
    )


def _told(source: Source, arm: ArmReport) -> ArmReport:
    """With what decides nothing; for reports that are read, not for looks that only act."""
    if source.spec.mode is Mode.SHADOW:
        return arm
    return replace(
        arm,
        unadjusted=beside.unadjusted(source, arm.arm),
        secondary=beside.secondary(source, arm.arm),
        segments=beside.segments(source, arm.arm),
    )


def _numbers(source: Source, now: Mapping[str, float]) -> tuple[ArmNumbers, ...]:
    """`now` are a bandit's present weights."""
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
            weight=now.get(arm, weight),
            answered={name: answered_units(source.mature, arm, name) for name in names},
            built_in=dict(data.built_in.get(arm, {})),
            triggered=None if source.triggered is None else exposed_units(source.deciding, arm),
        )
        for arm, weight in weights.items()
    )


def guarded_of(found: Guarded, plan: Plan) -> Measured:
    """A guardrail: p is the one of the state, or the smaller one while it is open."""
    rail = found.guardrail
    return replace(
        beside.measured_of(found.comparison, rail.metric, plan),
        p=min(found.p_beyond, found.p_within),
        state=found.state.value,
        margin=rail.margin,
        margin_relative=rail.relative,
    )


def pairs_of(found: Paired) -> Pairs:
    """Pairs of a shadow arm."""
    return Pairs(
        found.wins, found.losses, found.ties, found.share, found.low, found.high, found.p, found.units
    )


def ruling_of(found: Verdict) -> Ruling:
    """A verdict."""
    return Ruling(found.decision.value, found.rule, found.text)


def allowed(source: Source, said: Ruling) -> Ruling:
    """A ruling as the mode lets it stand."""
    if source.spec.mode is Mode.HOLDOUT and said.decision in (Decision.PROMOTE, Decision.HARM):
        return Ruling(Decision.UNDECIDED.value, "holdout", HOLDOUT.format(said.text))
    return said


def of_bandit(
    arms: tuple[ArmReport, ...], health: Health
) -> tuple[tuple[ArmReport, ...], Ruling, str | None]:
    """Arms, the experiment's ruling and the arm that it is about: harm where all do harm."""
    if faults := health.faults():
        invalid = Ruling(Decision.INVALID.value, faults[0].rule, "; ".join(f.text for f in faults))
        return tuple(replace(arm, verdict=invalid, blocked=arm.verdict) for arm in arms), invalid, None
    still = [arm for arm in arms if arm.verdict.decision != Decision.HARM]
    leading = still[0] if still else arms[0]
    return arms, leading.verdict, leading.arm if len(arms) == 1 else None


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
        f"pairs of {pairs.units:,} units: {counted}; share of wins by unit {pairs.share:.1%} in"
        f" [{pairs.low:.1%}, {pairs.high:.1%}], p = {pairs.p:.2g}; operational, nobody saw these answers"
    )
