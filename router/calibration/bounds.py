"""Exact binomial bounds (Clopper and Pearson, 1934), in plain numpy."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from router.calibration.arrays import Array

STEPS = 60  # bisections: far below the precision of a float


def tail(errors: int, count: int, rate: float) -> float:
    """P(at most `errors` of `count` go wrong) if each goes wrong with probability `rate`."""
    if errors >= count or rate <= 0:
        return 1.0
    if errors < 0 or rate >= 1:
        return 0.0
    return float(_tails(errors, count, rate)[-1])


@lru_cache(maxsize=512)
def all_tails(count: int, rate: float) -> Array:
    """[count + 1] `tail` for every number of errors."""
    return _tails(count, count, rate)


def _tails(last: int, count: int, rate: float) -> Array:
    k = np.arange(last + 1)
    logs = _log_factorials(1 << count.bit_length())
    choose = logs[count] - logs[k] - logs[count - k]
    sums: Array = np.exp(choose + k * math.log(rate) + (count - k) * math.log1p(-rate)).cumsum()
    return np.minimum(sums, 1.0)


@lru_cache
def _log_factorials(last: int) -> Array:
    """log k! for k = 0..last."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, last + 1)))])


def upper(errors: int, count: int, delta: float) -> float:
    """One-sided upper bound of the error rate at confidence 1 - `delta`: 1.0 if nothing was seen."""
    if count == 0 or errors >= count:
        return 1.0
    low, high = errors / count, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(errors, count, middle) > delta else (low, middle)
    return high


def needed(target: float, delta: float, errors: int = 0) -> int:
    """The fewest requests that prove an error rate under `target` when `errors` of them go wrong."""
    low, high = errors, max(1, errors)
    while tail(errors, high, target) > delta:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tail(errors, middle, target) > delta else (low, middle)
    return high
