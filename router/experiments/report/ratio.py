"""Do arms get the shares of units that they should, over time?

The evidence after every bucket of time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.experiments.stats.checks import SampleRatio, arm_term, total_term
from router.experiments.stats.moments import Array

if TYPE_CHECKING:
    from router.experiments.store.series import TimeBucket


def ratio_of(
    buckets: Sequence[TimeBucket],
    weights: Mapping[str, float],
    peak: float = 0.0,
    withdrawn: Mapping[str, float] = MappingProxyType({}),
) -> SampleRatio:
    """The test on all units, with its largest evidence at the end of any bucket or any look before.

    `withdrawn`: since when an arm has no more units. Each stretch of time between withdrawals is tested with
    the shares of the arms that it has, among those alone: evidence of independent stretches adds up. In the
    bucket of a withdrawal the arm's units are left out of the test, as are those that were under way.
    """
    arms, log_evidence, most = list(weights), 0.0, peak
    counts, expected = np.zeros(len(arms)), np.zeros(len(arms))
    for stretch, left in stretches(buckets, arms, withdrawn):
        here, shares = _counts(stretch, arms), np.array([weights[arm] * (arm in left) for arm in arms])
        shares /= shares.sum()
        tested = here * (shares > 0)
        running = np.cumsum(tested, axis=0)[_last_of_each(np.array([b.start for b in stretch]))]
        if len(running):
            among = shares > 0
            path = log_evidence + ratio_evidence(running[:, among], list(shares[among]))
            log_evidence, most = float(path[-1]), max(most, float(path.max()))
        counts += here.sum(axis=0)
        expected += shares * tested.sum() + (here - tested).sum(axis=0)
    whole = tuple(int(n) for n in counts)
    return SampleRatio(whole, tuple(map(float, expected)), log_evidence, max(most, log_evidence))


def stretches(
    buckets: Sequence[TimeBucket], arms: Sequence[str], withdrawn: Mapping[str, float]
) -> Iterator[tuple[list[TimeBucket], Collection[str]]]:
    """Buckets between withdrawals, and the arms that had units throughout. A bucket in which an arm was
    withdrawn belongs to the stretch after it."""
    begun, left = -math.inf, list(arms)
    for end in (*sorted(set(withdrawn.values())), math.inf):
        yield [b for b in buckets if begun < b.start + b.seconds <= end], left
        begun, left = end, [arm for arm in left if withdrawn.get(arm, math.inf) > end]


def _counts(buckets: Sequence[TimeBucket], arms: Sequence[str]) -> Array:
    """Units, [buckets, arms]."""
    found = [[b.exposed if b.arm == arm else 0 for arm in arms] for b in buckets]
    return np.array(found, np.float64).reshape(len(buckets), len(arms))


def _last_of_each(starts: Array) -> NDArray[np.int64]:
    """Which buckets are the last of their time: between two arms of one bucket nothing is tested."""
    if not len(starts):
        return np.array([], np.int64)
    return np.flatnonzero(np.append(starts[1:] != starts[:-1], True))


def ratio_evidence(counts: Array, weights: Sequence[float]) -> Array:
    """Log evidence, [looks], from units by look and arm, [looks, arms]."""
    found = -total_term(counts.sum(axis=1))
    for i, weight in enumerate(weights):
        found = found + arm_term(counts[:, i], weight)
    return np.asarray(found, np.float64)
