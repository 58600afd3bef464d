"""A report: what the store has of a phase, judged now, in plain values, with its course over time for plots.

Only sums by time bucket are read, so a million units cost as little as a thousand. What a mode allows to be
said goes no further than its evidence: shadow arms and bandits are not promoted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.experiments.model import Mode
from router.experiments.modes import BANDIT, MISSING, Judges, needed
from router.experiments.report import beside
from router.experiments.report.checks import checks_of, health_of, notes_of, share_band
from router.experiments.report.model import ArmNumbers, ArmReport, Measured, Pairs, Point, Report, Ruling
from router.experiments.report.source import (
    Source,
    answered_units,
    exposed_units,
    gather,
    latest_weights,
    moments_by_bucket,
    moments_of_row,
    phase_of,
    rows_of,
    usable_moments,
)
from router.experiments.stats import Arms, Guarded, Moments, Plan, paired
from router.experiments.stats.moments import Array, Real
from router.experiments.store.port import Bucket, PairCounts, Store
from router.experiments.verdict import ArmVerdict, Decision, Health, Judgement, Verdict, judge

POINTS = 200
NOT_STARTED = Ruling(Decision.UNDECIDED.value, "not-started", "nobody is assigned before the start")
NOT_JUDGED = Ruling(Decision.UNDECIDED.value, "not-judged", MISSING[BANDIT])
HOLDOUT = "a read-out of all experiments together: nothing is promoted or stopped by it. So far: {}"


def report(
    store: Store,
    name: str,
    phase: int = 0,
    *,
    now: float,
    points: int = POINTS,
    judges: Judges | None = None,
) -> Report:
    """Judge `experiments/name` in a phase (0: the last) at `now`, unix seconds; valid however often asked.

    `points`: most points of each arm's plot; 0 leaves them out, which is faster. `judges` are of modes that
    plugins add. The largest evidence of
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
    arms, said, arm = _verdicts(store, source, health, judges or {})
    if points:
        arms = tuple(_with_details(source, one) for one in arms)
    return Report(
        experiment=experiment,
        phase=asked.number,
        verdict=said,
        arm=arm,
        arms=arms,
        checks=checks_of(source, health),
        numbers=_numbers(source, latest_weights(trail, asked)),
        audit=trail,
        points=_points(source, points),
        notes=notes_of(source, health),
        time=now,
        forecast=beside.forecast(source, arms, said.decision) if points else None,
    )


def _verdicts(
    store: Store, source: Source, health: Health, judges: Judges
) -> tuple[tuple[ArmReport, ...], Ruling, str | None]:
    """Arms, the experiment's ruling and the arm that it is about."""
    mode = needed(source.spec)
    found = judges[mode](source) if mode in judges else None
    if found is not None or mode == BANDIT:
        return _verdicts_of_mode(found or (), health)
    judgement = judge(source.design, source.outcomes(), health)
    arms = _arms(store, source, judgement)
    return arms, _overall(source, _ruling_of(judgement.verdict), arms), judgement.arm


def _arms(store: Store, source: Source, judgement: Judgement) -> tuple[ArmReport, ...]:
    arms = tuple(_arm(source, found) for found in judgement.arms)
    if source.spec.mode is not Mode.SHADOW:
        return arms
    counts = store.paired(source.experiment.name, source.phase.number)
    return tuple(_shadow_arm(arm, counts.get(arm.arm, PairCounts()), source.spec.alpha) for arm in arms)


def _arm(source: Source, found: ArmVerdict) -> ArmReport:
    design = source.design
    primary, plan = None, design.plan_for(found.arm)
    if found.primary:
        length = beside.at_equal_length(source, found.arm)
        primary = beside.measured_of(found.primary, design.primary, plan, length)
    return ArmReport(
        arm=found.arm,
        verdict=_allowed(source, _ruling_of(found.verdict)),
        primary=primary,
        adjusted_p=found.p,
        guardrails=tuple(_guardrail_of(rail, plan) for rail in found.guardrails),
        blocked=_allowed(source, _ruling_of(found.blocked)) if found.blocked else None,
        everyone=beside.everyone(source, found.arm),
    )


def _with_details(source: Source, arm: ArmReport) -> ArmReport:
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


def _guardrail_of(found: Guarded, plan: Plan) -> Measured:
    """A guardrail: p is the one of the state, or the smaller one while it is open."""
    rail = found.guardrail
    return replace(
        beside.measured_of(found.comparison, rail.metric, plan),
        p=min(found.p_beyond, found.p_within),
        state=found.state.value,
        margin=rail.margin,
        margin_relative=rail.relative,
    )


def _ruling_of(found: Verdict) -> Ruling:
    """A verdict."""
    return Ruling(found.decision.value, found.rule, found.text)


def _allowed(source: Source, said: Ruling) -> Ruling:
    """A ruling as the mode lets it stand."""
    if source.spec.mode is Mode.HOLDOUT and said.decision in (Decision.PROMOTE, Decision.HARM):
        return Ruling(Decision.UNDECIDED.value, "holdout", HOLDOUT.format(said.text))
    return said


def _verdicts_of_mode(
    arms: tuple[ArmReport, ...], health: Health
) -> tuple[tuple[ArmReport, ...], Ruling, str | None]:
    """As `_verdicts`, of arms that a mode has judged: harm where all do harm."""
    if faults := health.faults():
        invalid = Ruling(Decision.INVALID.value, faults[0].rule, "; ".join(f.text for f in faults))
        return tuple(replace(arm, verdict=invalid, blocked=arm.verdict) for arm in arms), invalid, None
    if not arms:
        return arms, NOT_JUDGED, None
    still = [arm for arm in arms if arm.verdict.decision != Decision.HARM]
    leading = still[0] if still else arms[0]
    return arms, leading.verdict, leading.arm if len(arms) == 1 else None


def _shadow_arm(arm: ArmReport, c: PairCounts, alpha: float) -> ArmReport:
    """A shadow arm's report: its pairs in place of a verdict, or beside the one that it is invalid."""
    found = paired(c.wins, c.losses, c.ties, alpha, units=c.units, share_sum=c.share_sum)
    shares = (found.share, found.low, found.high)
    pairs = Pairs(found.wins, found.losses, found.ties, *shares, found.p, found.units)
    said = Ruling(Decision.UNDECIDED.value, "shadow", _pairs_in_words(pairs))
    if arm.verdict.decision == Decision.INVALID:
        return replace(arm, blocked=said, pairs=pairs)
    return replace(arm, verdict=said, pairs=pairs)


def _overall(source: Source, judged: Ruling, arms: tuple[ArmReport, ...]) -> Ruling:
    """The experiment's ruling."""
    if source.spec.mode is Mode.SHADOW and judged.decision != Decision.INVALID:
        text = "; ".join(f"{arm.arm}: {arm.verdict.text}" for arm in arms)
        return Ruling(Decision.UNDECIDED.value, "shadow", text)
    return _allowed(source, judged)


def _pairs_in_words(pairs: Pairs) -> str:
    """Pairs in words."""
    counted = f"{pairs.wins:,} won, {pairs.losses:,} lost, {pairs.ties:,} tied"
    return (
        f"pairs of {pairs.units:,} units: {counted}; share of wins by unit {pairs.share:.1%} in"
        f" [{pairs.low:.1%}, {pairs.high:.1%}], p = {pairs.p:.2g}; operational, nobody saw these answers"
    )


# -- over time


class _Effect(NamedTuple):
    """An effect with its interval, and the same as shares of control's value where that is known."""

    effect: float
    low: float
    high: float
    relative: float | None = None
    relative_low: float | None = None
    relative_high: float | None = None


_UNKNOWN = _Effect(math.nan, -math.inf, math.inf)


def _points(source: Source, most: int) -> tuple[Point, ...]:
    """At most `most` points of each arm, the last bucket's among them. None of shadow arms, which nobody is
    exposed to."""
    if source.spec.mode is Mode.SHADOW or not source.data.buckets or most < 1:
        return ()
    times = _thinned(np.unique(_ends(source.data.buckets)), most)
    units = {arm: _exposed(source.data.buckets, arm, times) for arm in source.design.weights}
    total = np.sum(list(units.values()), axis=0)
    effects = {arm: _effects_over_time(source, arm, times) for arm in source.design.treatments}
    nothing = [_Effect(0.0, 0.0, 0.0)] * len(times)
    return tuple(
        _point(source, float(time), arm, effects.get(arm, nothing)[i], int(units[arm][i]), int(total[i]))
        for arm in source.design.weights
        for i, time in enumerate(times)
    )


def _point(source: Source, time: float, arm: str, effect: _Effect, units: int, total: int) -> Point:
    weight = source.design.weights[arm]
    bounds = share_band(total, weight) if source.spec.mode is Mode.SPLIT else (0.0, 1.0)
    share = units / total if total else weight
    return Point(time, arm, *effect[:3], units, share, *bounds, *effect[3:])


def _ends(buckets: Sequence[Bucket]) -> Array:
    return np.array([b.start + b.seconds for b in buckets], np.float64)


def _thinned(times: Array, most: int) -> Array:
    if len(times) <= most:
        return times
    return times[np.unique(np.linspace(0, len(times) - 1, most).round().astype(np.int64))]


def _until(buckets: Sequence[Bucket], times: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order of the buckets by their ends, and how many of them are over at each time."""
    ends = _ends(buckets)
    order = np.argsort(ends, kind="stable")
    return order, np.searchsorted(ends[order], times, side="right")


def _cumulative(table: Array, order: NDArray[np.int64], until: NDArray[np.int64]) -> Array:
    """Rows [buckets, columns] added up until each time: [times, columns]."""
    start = np.zeros((1, table.shape[1]))
    return np.concatenate((start, np.cumsum(table[order], axis=0)))[until]


def _exposed(buckets: Sequence[Bucket], arm: str, times: Array) -> Array:
    counts = np.array([[b.exposed if b.arm == arm else 0] for b in buckets], np.float64)
    return _cumulative(counts, *_until(buckets, times))[:, 0]


def _effects_over_time(source: Source, arm: str, times: Array) -> list[_Effect]:
    metric, buckets = source.design.primary, source.deciding
    if not buckets or source.spec.mode is Mode.BANDIT:  # no interval of a bandit holds
        return [_UNKNOWN] * len(times)
    order, until = _until(buckets, times)
    sums = [
        [usable_moments(metric, moments_of_row(row, metric.columns)) for row in found]
        for found in (
            _cumulative(rows_of(moments_by_bucket(buckets, a, metric), metric.columns), order, until)
            for a in (source.design.control, arm)
        )
    ]
    return _effects_of_sums(source, arm, *sums)


def _effects_of_sums(
    source: Source, arm: str, control: Sequence[Moments], treatment: Sequence[Moments]
) -> list[_Effect]:
    """Effect and interval at each time."""
    found = [_UNKNOWN] * len(control)
    usable = [i for i, both in enumerate(zip(control, treatment, strict=True)) if min(m.n for m in both) >= 2]
    if usable:
        first, second = (_stacked([of[i] for i in usable]) for of in (control, treatment))
        arms = Arms(source.design.primary, first, second, source.design.plan_for(arm))
        columns = (np.asarray(arms.difference()), *arms.bounds(), *arms.relative_bounds())
        bases = np.asarray(arms.estimates[0].value)
        for at, i in enumerate(usable):
            effect, low, high, *relative = (float(column[at]) for column in columns)
            known = math.isfinite(relative[1])
            found[i] = _Effect(effect, low, high, *(effect / float(bases[at]), *relative) if known else ())
    return found


def _stacked(looks: Sequence[Moments]) -> Moments:
    """Many looks as one value, whose sums are arrays."""

    def column(of: Callable[[Moments], Sequence[Real]]) -> tuple[Array, ...]:
        return tuple(np.array(values, np.float64) for values in zip(*map(of, looks), strict=True))

    n = np.array([look.n for look in looks], np.float64)
    return Moments(n, column(lambda m: m.sums), column(lambda m: m.products), column(lambda m: m.cubes))
