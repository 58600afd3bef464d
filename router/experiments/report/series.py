"""The effect and the arms' shares over time, for plots: cumulative over buckets, thinned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.experiments.model import Mode
from router.experiments.report.checks import band
from router.experiments.report.model import Point
from router.experiments.report.source import (
    Source,
    moments_by_bucket,
    moments_of_row,
    rows_of,
    usable_moments,
)
from router.experiments.stats import Arms, Moments
from router.experiments.stats.moments import Array, Real
from router.experiments.store.port import Bucket

Index = NDArray[np.int64]


class Effect(NamedTuple):
    """An effect with its interval, and the same as shares of control's value where that is known."""

    effect: float
    low: float
    high: float
    relative: float | None = None
    relative_low: float | None = None
    relative_high: float | None = None


UNKNOWN = Effect(math.nan, -math.inf, math.inf)


def points_of(source: Source, most: int) -> tuple[Point, ...]:
    """At most `most` points of each arm, the last bucket's among them. None of shadow arms, which nobody is
    exposed to."""
    if source.spec.mode is Mode.SHADOW or not source.data.buckets or most < 1:
        return ()
    times = _thinned(np.unique(_ends(source.data.buckets)), most)
    units = {arm: _exposed(source.data.buckets, arm, times) for arm in source.design.weights}
    total = np.sum(list(units.values()), axis=0)
    effects = {arm: _effects(source, arm, times) for arm in source.design.treatments}
    nothing = [Effect(0.0, 0.0, 0.0)] * len(times)
    return tuple(
        _point(source, float(time), arm, effects.get(arm, nothing)[i], int(units[arm][i]), int(total[i]))
        for arm in source.design.weights
        for i, time in enumerate(times)
    )


def _point(source: Source, time: float, arm: str, effect: Effect, units: int, total: int) -> Point:
    weight = source.design.weights[arm]
    bounds = band(total, weight) if source.spec.mode is Mode.SPLIT else (0.0, 1.0)
    share = units / total if total else weight
    return Point(time, arm, *effect[:3], units, share, *bounds, *effect[3:])


def _ends(buckets: Sequence[Bucket]) -> Array:
    return np.array([b.start + b.seconds for b in buckets], np.float64)


def _thinned(times: Array, most: int) -> Array:
    if len(times) <= most:
        return times
    return times[np.unique(np.linspace(0, len(times) - 1, most).round().astype(np.int64))]


def _until(buckets: Sequence[Bucket], times: Array) -> tuple[Index, Index]:
    """Order of the buckets by their ends, and how many of them are over at each time."""
    ends = _ends(buckets)
    order = np.argsort(ends, kind="stable")
    return order, np.searchsorted(ends[order], times, side="right")


def _cumulative(table: Array, order: Index, until: Index) -> Array:
    """Rows [buckets, columns] added up until each time: [times, columns]."""
    start = np.zeros((1, table.shape[1]))
    return np.concatenate((start, np.cumsum(table[order], axis=0)))[until]


def _exposed(buckets: Sequence[Bucket], arm: str, times: Array) -> Array:
    counts = np.array([[b.exposed if b.arm == arm else 0] for b in buckets], np.float64)
    return _cumulative(counts, *_until(buckets, times))[:, 0]


def _effects(source: Source, arm: str, times: Array) -> list[Effect]:
    metric, buckets = source.design.primary, source.deciding
    if not buckets or source.spec.mode is Mode.BANDIT:  # no interval of a bandit holds
        return [UNKNOWN] * len(times)
    order, until = _until(buckets, times)
    sums = [
        [usable_moments(metric, moments_of_row(row, metric.columns)) for row in found]
        for found in (
            _cumulative(rows_of(moments_by_bucket(buckets, a, metric), metric.columns), order, until)
            for a in (source.design.control, arm)
        )
    ]
    return _compared(source, arm, *sums)


def _compared(
    source: Source, arm: str, control: Sequence[Moments], treatment: Sequence[Moments]
) -> list[Effect]:
    """Effect and interval at each time."""
    found = [UNKNOWN] * len(control)
    usable = [i for i, both in enumerate(zip(control, treatment, strict=True)) if min(m.n for m in both) >= 2]
    if usable:
        first, second = (_stacked([of[i] for i in usable]) for of in (control, treatment))
        arms = Arms(source.design.primary, first, second, source.design.plan_for(arm))
        columns = (np.asarray(arms.difference()), *arms.bounds(), *arms.relative_bounds())
        bases = np.asarray(arms.estimates[0].value)
        for at, i in enumerate(usable):
            effect, low, high, *relative = (float(column[at]) for column in columns)
            known = math.isfinite(relative[1])
            found[i] = Effect(effect, low, high, *(effect / float(bases[at]), *relative) if known else ())
    return found


def _stacked(looks: Sequence[Moments]) -> Moments:
    """Many looks as one value, whose sums are arrays."""

    def column(of: Callable[[Moments], Sequence[Real]]) -> tuple[Array, ...]:
        return tuple(np.array(values, np.float64) for values in zip(*map(of, looks), strict=True))

    n = np.array([look.n for look in looks], np.float64)
    return Moments(n, column(lambda m: m.sums), column(lambda m: m.products), column(lambda m: m.cubes))
