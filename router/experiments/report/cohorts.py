"""Sums of buckets: of all, of those that are mature, and cumulative over time.

Rows of numbers are added by numpy, so that a year of buckets costs milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from router.experiments.stats import Kind, Metric, Moments
from router.experiments.stats.moments import Array, places
from router.experiments.store.port import Bucket


def mature(buckets: Iterable[Bucket], now: float, window: float) -> tuple[Bucket, ...]:
    """Buckets of which even the last unit's window is over."""
    return tuple(b for b in buckets if b.start + b.seconds + window <= now)


def rows(found: Sequence[Moments], columns: int) -> Array:
    """[buckets, 1 + columns + products + cubes]: units, sums, sums of products of two and of three."""
    unknown = (math.nan,) * len(places(columns, 3))
    table = np.array([(m.n, *m.sums, *m.products, *(m.cubes or unknown)) for m in found], np.float64)
    return table.reshape(len(found), 1 + sum(len(places(columns, power)) for power in (1, 2, 3)))


def moments(row: Array, columns: int) -> Moments:
    """A row back as sums."""
    n, *values = (float(value) for value in row)
    products, cubes = columns, columns + len(places(columns, 2))
    known = not any(map(math.isnan, values[cubes:]))
    return Moments(
        int(n),
        tuple(values[:products]),
        tuple(values[products:cubes]),
        tuple(values[cubes:]) if known else (),
    )


def of_metric(buckets: Sequence[Bucket], arm: str, metric: Metric) -> list[Moments]:
    """The sums of one arm and metric, bucket by bucket; empty ones for other arms' buckets."""
    empty = Moments.empty(metric.columns)
    return [b.moments.get(metric.name, empty) if b.arm == arm else empty for b in buckets]


def total(buckets: Sequence[Bucket], arm: str, metric: Metric) -> Moments:
    """The sums of one arm and metric over all buckets."""
    return usable(
        metric, moments(rows(of_metric(buckets, arm, metric), metric.columns).sum(axis=0), metric.columns)
    )


def usable(metric: Metric, sums: Moments) -> Moments:
    """A ratio whose denominator is still 0 has no value: then as if there were no units yet."""
    if metric.kind is Kind.RATIO and any(sums.sums[i] == 0 for i in range(1, metric.columns, 2)):
        return Moments.empty(metric.columns)
    return sums


def lengths(buckets: Iterable[Bucket], arm: str) -> Moments | None:
    """The columns (value, length) of an arm; None where the store has none."""
    found = [b.lengths for b in buckets if b.arm == arm and b.lengths is not None]
    return moments(rows(found, 2).sum(axis=0), 2) if found else None


def exposed(buckets: Iterable[Bucket], arm: str) -> int:
    """Units of an arm."""
    return sum(b.exposed for b in buckets if b.arm == arm)


def answered(buckets: Iterable[Bucket], arm: str, metric: str) -> int:
    """Units of an arm that have an outcome of the metric."""
    return sum(b.answered.get(metric, 0) for b in buckets if b.arm == arm)
