"""A phase over time: sums at the end of each stretch, which the planned bound is read from.

Units are added up in the order of their first exposure, and a mature unit's value is final. So the course of
a phase until some day is the same whenever it is looked at, and what the planned bound has shown stays shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from router.extensions.experiments.report.source import (
    PhaseEvidence,
    moments_by_bucket,
    moments_of_row,
    rows_of,
    usable_moments,
)
from router.extensions.experiments.stats.moments import Array, ComparedMetric, Moments, Real
from router.extensions.experiments.stats.planned import Looks
from router.extensions.experiments.store.series import TimeBucket
from router.extensions.experiments.verdict import Course


def course_of(source: PhaseEvidence) -> Course:
    """The mature units' sums of the primary metric and the guardrails, by arm but control."""
    return {arm: _course_of(source, arm) for arm in source.design.treatments}


def _course_of(source: PhaseEvidence, arm: str) -> dict[str, Looks]:
    design = source.design
    metrics = {design.primary: source.mature}
    metrics |= {rail.metric: source.older(source.ages[rail.metric.name]) for rail in design.guardrails}
    found = {metric.name: _course(source, arm, metric, buckets) for metric, buckets in metrics.items()}
    return {name: looks for name, looks in found.items() if looks is not None}


def _course(
    source: PhaseEvidence, arm: str, metric: ComparedMetric, buckets: Sequence[TimeBucket]
) -> Looks | None:
    """At the ends of the stretches from which on both arms can be compared; None: there is none."""
    times, pair = np.unique(_ends(buckets)), (source.design.control, arm)
    both = [_sums_until(buckets, one, metric, times) for one in pair]
    usable = [i for i, sums in enumerate(zip(*both, strict=True)) if min(m.n for m in sums) >= 2]
    if not usable:
        return None
    first, second = (_stacked([of[i] for i in usable]) for of in both)
    before, after = (_exposed(buckets, one, times)[usable] for one in pair)
    return Looks(first, second, (before, after))


def _sums_until(
    buckets: Sequence[TimeBucket], arm: str, metric: ComparedMetric, times: Array
) -> list[Moments]:
    """An arm's sums over the buckets that are over at each time."""
    rows = rows_of(moments_by_bucket(buckets, arm, metric), metric.columns)
    found = _cumulative(rows, *_until(buckets, times))
    return [usable_moments(metric, moments_of_row(row, metric.columns)) for row in found]


def _stacked(looks: Sequence[Moments]) -> Moments:
    """Many looks as one value, whose sums are arrays."""

    def column(of: Callable[[Moments], Sequence[Real]]) -> tuple[Array, ...]:
        return tuple(np.array(values, np.float64) for values in zip(*map(of, looks), strict=True))

    n = np.array([look.n for look in looks], np.float64)
    return Moments(n, column(lambda m: m.sums), column(lambda m: m.products), column(lambda m: m.cubes))


def _ends(buckets: Sequence[TimeBucket]) -> Array:
    return np.array([b.start + b.seconds for b in buckets], np.float64)


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
