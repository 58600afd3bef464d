"""A phase over time: sums at the end of each stretch, which the planned bound is read from, and plots.

Units are added up in the order of their first exposure, and a mature unit's value is final. So the course of
a phase until some day is the same whenever it is looked at, and what the planned bound has shown stays shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.extensions.experiments.model import Mode
from router.extensions.experiments.report.model import PlotPoint
from router.extensions.experiments.report.source import (
    PhaseEvidence,
    moments_by_bucket,
    moments_of_row,
    rows_of,
    usable_moments,
)
from router.extensions.experiments.stats.compare import ArmPair
from router.extensions.experiments.stats.moments import Array, ComparedMetric, Moments, Real
from router.extensions.experiments.stats.planned import Looks, better_end, edges_by_plan
from router.extensions.experiments.stats.sequences import Line
from router.extensions.experiments.store.series import TimeBucket
from router.extensions.experiments.verdict import Course


def course_of(source: PhaseEvidence) -> Course:
    """The mature units' sums of the primary metric and the guardrails, by arm but control."""
    return {arm: _course_of(source, arm) for arm in source.design.treatments}


def _course_of(source: PhaseEvidence, arm: str) -> dict[str, Looks]:
    design = source.design
    metrics = {design.primary: source.mature}
    metrics |= {rail.metric: source.older(source.ages[rail.metric.name]) for rail in design.guardrails}
    found = {metric.name: _course(source, arm, metric, buckets).looks for metric, buckets in metrics.items()}
    return {name: looks for name, looks in found.items() if looks is not None}


class _Course(NamedTuple):
    """The ends of stretches from which on both arms can be compared, and their sums then; None: no end."""

    times: Array
    looks: Looks | None


def _course(
    source: PhaseEvidence,
    arm: str,
    metric: ComparedMetric,
    buckets: Sequence[TimeBucket],
    times: Array | None = None,
) -> _Course:
    """At the ends of all stretches, or at some times."""
    times = np.unique(_ends(buckets)) if times is None else times
    both = [_sums_until(buckets, one, metric, times) for one in (source.design.control, arm)]
    usable = [i for i, pair in enumerate(zip(*both, strict=True)) if min(m.n for m in pair) >= 2]
    if not usable:
        return _Course(times[:0], None)
    first, second = (_stacked([of[i] for i in usable]) for of in both)
    before, after = (_exposed(buckets, one, times)[usable] for one in (source.design.control, arm))
    return _Course(times[usable], Looks(first, second, (before, after)))


def _sums_until(
    buckets: Sequence[TimeBucket], arm: str, metric: ComparedMetric, times: Array
) -> list[Moments]:
    """An arm's sums over the buckets that are over at each time."""
    rows = rows_of(moments_by_bucket(buckets, arm, metric), metric.columns)
    found = _cumulative(rows, *_until(buckets, times))
    return [usable_moments(metric, moments_of_row(row, metric.columns)) for row in found]


class _Effect(NamedTuple):
    """An effect with its interval."""

    effect: float
    low: float
    high: float


_UNKNOWN = _Effect(math.nan, -math.inf, math.inf)


def points_of(source: PhaseEvidence, most: int) -> tuple[PlotPoint, ...]:
    """At most `most` points of each arm, the last bucket's among them. None of shadow arms, which nobody is
    exposed to."""
    if source.spec.mode is Mode.SHADOW or not source.data.buckets or most < 1:
        return ()
    times = _thinned(np.unique(_ends(source.data.buckets)), most)
    found = []
    for arm in source.design.treatments:
        effects = _effects_over_time(source, arm, times)
        found += [PlotPoint(float(time), arm, *effect) for time, effect in zip(times, effects, strict=True)]
    return tuple(found)


def _effects_over_time(source: PhaseEvidence, arm: str, times: Array) -> list[_Effect]:
    """Effect and interval at each time."""
    found = [_UNKNOWN] * len(times)
    if not source.mature:
        return found
    metric = source.design.primary
    known, looks = _course(source, arm, metric, source.mature, times)
    if looks is None:
        return found
    arms = ArmPair(metric, looks.control, looks.treatment, source.design.plan_for(arm))
    effects = np.asarray(arms.difference())
    lows, highs = _interval_ends(source, arm, arms, known, effects)
    for at, i in enumerate(np.searchsorted(times, known)):
        found[i] = _Effect(float(effects[at]), float(lows[at]), float(highs[at]))
    return found


def _interval_ends(
    source: PhaseEvidence, arm: str, arms: ArmPair, times: Array, effects: Array
) -> tuple[Array, Array]:
    """Ends of the interval of the difference, as the verdict has them."""
    metric, plan = arms.metric, arms.plan
    whole = _course(source, arm, metric, source.mature)
    if whole.looks is None:
        return arms.bounds()
    line = Line(offset=-metric.sign * source.design.margin)
    edges = edges_by_plan(metric, whole.looks, plan, line, metric.sign)
    last = np.searchsorted(whole.times, times, side="right") - 1
    return better_end(metric.sign, arms.bounds(), edges[last], effects)


def _stacked(looks: Sequence[Moments]) -> Moments:
    """Many looks as one value, whose sums are arrays."""

    def column(of: Callable[[Moments], Sequence[Real]]) -> tuple[Array, ...]:
        return tuple(np.array(values, np.float64) for values in zip(*map(of, looks), strict=True))

    n = np.array([look.n for look in looks], np.float64)
    return Moments(n, column(lambda m: m.sums), column(lambda m: m.products), column(lambda m: m.cubes))


def _ends(buckets: Sequence[TimeBucket]) -> Array:
    return np.array([b.start + b.seconds for b in buckets], np.float64)


def _thinned(times: Array, most: int) -> Array:
    if len(times) <= most:
        return times
    return times[np.unique(np.linspace(0, len(times) - 1, most).round().astype(np.int64))]


def _until(buckets: Sequence[TimeBucket], times: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order of the buckets by their ends, and how many of them are over at each time."""
    ends = _ends(buckets)
    order = np.argsort(ends, kind="stable")
    return order, np.searchsorted(ends[order], times, side="right")


def _cumulative(table: Array, order: NDArray[np.int64], until: NDArray[np.int64]) -> Array:
    """Rows [buckets, columns] added up until each time: [times, columns]."""
    start = np.zeros((1, table.shape[1]))
    return np.concatenate((start, np.cumsum(table[order], axis=0)))[until]


def _exposed(buckets: Sequence[TimeBucket], arm: str, times: Array) -> Array:
    counts = np.array([[b.exposed if b.arm == arm else 0] for b in buckets], np.float64)
    return _cumulative(counts, *_until(buckets, times))[:, 0]
