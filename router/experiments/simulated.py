"""Outcomes of units that never were, by kind of metric and what is known of it, and the sums of arms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from router.experiments.model import DENOMINATORS, Kind, MetricSpec
from router.experiments.report.source import metric_of
from router.experiments.stats import Metric, Moments
from router.experiments.stats.moments import Array, places

RATE, MEAN, DEVIATION = 0.3, 1.0, 1.0
"""Where nothing is known of a metric."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A metric and how its values are drawn: 0 or 1 at the rate `mean`, else log-normal with mean and
    deviation."""

    spec: MetricSpec
    mean: float = MEAN
    deviation: float = DEVIATION

    @staticmethod
    def of(spec: MetricSpec, mean: float | None = None, deviation: float | None = None) -> Drawn:
        """With what is known of it; what cannot be drawn so has the usual values."""
        if spec.kind is Kind.PROPORTION:
            known = mean is not None and 0 < mean < 1
            return Drawn(spec, mean if known and mean is not None else RATE, 0.0)
        if mean is None or deviation is None or not (0 < mean < np.inf and 0 < deviation < np.inf):
            return Drawn(spec)
        return Drawn(spec, mean, deviation)

    @property
    def metric(self) -> Metric:
        """Of the statistics; units that never were have no past."""
        return metric_of(replace(self.spec, covariate=False))

    def values(self, units: int, seed: int) -> Array:
        """[columns, units]: value, and the denominator of a ratio."""
        dice = np.random.default_rng(seed)
        if self.spec.kind is Kind.PROPORTION:
            return (dice.random((1, units)) < self.mean).astype(np.float64)
        spread = np.log1p((self.deviation / self.mean) ** 2)
        value = dice.lognormal(np.log(self.mean) - spread / 2, np.sqrt(spread), units)
        if self.spec.kind is Kind.MEAN:
            return value[None]
        own = self.spec.per not in DENOMINATORS
        below = dice.lognormal(0.0, 0.5, units) if own else 1.0 + dice.poisson(0.5, units)
        return np.stack([value * below, below])

    def counted(self, values: Array) -> Array:
        """The same as they count: within the cap."""
        return np.clip(values, *self.metric.range)


def powers(columns: Array) -> Array:
    """[units, sums]: for each unit 1, its columns, their products, and products of three."""
    one = np.ones((1, columns.shape[1]))
    of = [
        np.prod(columns[list(at)], axis=0)[None] for power in (1, 2, 3) for at in places(len(columns), power)
    ]
    return np.concatenate([one, *of]).T


def moments(sums: Array, columns: int) -> Moments:
    """[sums, experiments] of `powers` as the sums of many experiments at once."""
    ends = np.cumsum([1, *(len(places(columns, power)) for power in (1, 2, 3))])
    first, products, cubes = (tuple(sums[a:b]) for a, b in pairwise(ends))
    return Moments(sums[0], first, products, cubes)
