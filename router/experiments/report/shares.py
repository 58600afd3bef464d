"""The sample ratio over time: its evidence after every bucket, and the shares at which it has its alarm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from router.experiments.stats import SampleRatio, sample_ratio
from router.experiments.stats.checks import ALPHA, arm_term, total_term
from router.experiments.stats.moments import Array
from router.experiments.store.port import Bucket

_STEPS = 40


def ratio_of(buckets: Sequence[Bucket], weights: Mapping[str, float], peak: float = 0.0) -> SampleRatio:
    """The test on all units, with its largest evidence at the end of any bucket or any look before."""
    arms = list(weights)
    counted = np.array([[b.exposed if b.arm == arm else 0 for arm in arms] for b in buckets], np.float64)
    running = np.cumsum(counted.reshape(len(buckets), len(arms)), axis=0)
    ends = _last_of_each(np.array([b.start for b in buckets]))
    found = evidence(running[ends], [weights[arm] for arm in arms])
    counts = [int(n) for n in running[-1]] if len(running) else [0] * len(arms)
    return sample_ratio(counts, [weights[arm] for arm in arms], max([peak, *found.tolist()]))


def _last_of_each(starts: Array) -> NDArray[np.int64]:
    """Which buckets are the last of their time: between two arms of one bucket nothing is tested."""
    if not len(starts):
        return np.array([], np.int64)
    return np.flatnonzero(np.append(starts[1:] != starts[:-1], True))


def evidence(counts: Array, weights: Sequence[float]) -> Array:
    """Log evidence, [looks], from units by look and arm, [looks, arms]."""
    found = -total_term(counts.sum(axis=1))
    for i, weight in enumerate(weights):
        found = found + arm_term(counts[:, i], weight)
    return np.asarray(found, np.float64)


def band(units: int, weight: float, alpha: float = ALPHA) -> tuple[float, float]:
    """Shares of one arm against all others, among `units`, between which the test has no alarm."""
    if not units:
        return 0.0, 1.0
    return _edge(units, weight, 0.0, alpha), _edge(units, weight, 1.0, alpha)


def _edge(units: int, weight: float, outside: float, alpha: float) -> float:
    """The evidence grows from the arm's own weight outwards, so by bisection."""
    inside, level = weight, -math.log(alpha)
    if _evidence_at(outside, units, weight) < level:
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if _evidence_at(middle, units, weight) < level:
            inside = middle
        else:
            outside = middle
    return inside


def _evidence_at(share: float, units: int, weight: float) -> float:
    counts = (share * units, (1 - share) * units)
    terms = sum(float(arm_term(n, w)) for n, w in zip(counts, (weight, 1 - weight), strict=True))
    return terms - float(total_term(units))
