"""A report: what the store has of a phase, judged now.

Only sums by time bucket are read, so a million units cost as little as a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.experiments.model import Mode
from router.experiments.report import cohorts, measured
from router.experiments.report.checks import checks_of, health_of
from router.experiments.report.model import ArmNumbers, ArmReport, Length, Measured, Pairs, Report
from router.experiments.report.notes import notes_of
from router.experiments.report.rulings import NOT_STARTED, allowed, of_shadow, overall
from router.experiments.report.series import points_of
from router.experiments.report.source import Source, gather, phase_of
from router.experiments.reweighting import latest
from router.experiments.stats import compare, length_adjusted, paired
from router.experiments.store.port import Store
from router.experiments.verdict import ArmVerdict, Judgement, judge

POINTS = 200


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
        verdict=overall(source, measured.ruling(judgement.verdict), arms),
        arm=judgement.arm,
        arms=arms,
        checks=checks_of(source, health),
        numbers=_numbers(source, latest(trail, asked)),
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
    return measured.pairs(paired(wins, losses, ties, alpha, units=wins + losses, share_sum=float(wins)))


def _arm(source: Source, found: ArmVerdict) -> ArmReport:
    higher = source.spec.primary.higher_is_better
    primary = None
    if found.primary:
        primary = measured.measured(found.primary, higher, _length(source, found.arm))
    return ArmReport(
        arm=found.arm,
        verdict=allowed(source, measured.ruling(found.verdict)),
        primary=primary,
        adjusted_p=found.p,
        guardrails=tuple(map(measured.guarded, found.guardrails)),
        blocked=allowed(source, measured.ruling(found.blocked)) if found.blocked else None,
        everyone=_everyone(source, found.arm),
    )


def _length(source: Source, arm: str) -> Length | None:
    """The effect at equal answer length, where both arms have three units with a length."""
    both = [cohorts.lengths(source.deciding, a) for a in (source.spec.control, arm)]
    control, treatment = both
    if control is None or treatment is None or min(control.n, treatment.n) < 3:
        return None
    return measured.length(length_adjusted(control, treatment, source.design.plan_for(arm)))


def _everyone(source: Source, arm: str) -> Measured | None:
    """Router experiments: the primary metric of all units, those included that nothing changed for."""
    if source.triggered is None:
        return None
    design = source.design
    control, treatment = (cohorts.total(source.mature, a, design.primary) for a in (design.control, arm))
    if min(control.n, treatment.n) < 2:
        return None
    found = compare(design.primary, control, treatment, design.plan_for(arm))
    return measured.measured(found, design.primary.higher_is_better)


def _numbers(source: Source, now: Mapping[str, float]) -> tuple[ArmNumbers, ...]:
    """`now` are a bandit's present weights."""
    spec, data, weights = source.spec, source.data, source.design.weights
    total = sum(b.exposed for b in data.buckets)
    names = [spec.primary.name, *(g.name for g in spec.guardrails)]
    return tuple(
        ArmNumbers(
            arm=arm,
            units=cohorts.exposed(data.buckets, arm),
            matured=cohorts.exposed(source.mature, arm),
            degraded=sum(b.degraded for b in data.buckets if b.arm == arm),
            responses=data.responses.get(arm, 0),
            expected=total * weight,
            weight=now.get(arm, weight),
            answered={name: cohorts.answered(source.mature, arm, name) for name in names},
            built_in=dict(data.built_in.get(arm, {})),
            triggered=None if source.triggered is None else cohorts.exposed(source.deciding, arm),
        )
        for arm, weight in weights.items()
    )
