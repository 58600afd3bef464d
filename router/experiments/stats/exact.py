"""Proportions with no approximation: error rates hold at any number of units and any look.

Each arm: the beta-binomial mixture (Robbins 1970; Howard et al. 2021, arXiv:1810.08240, section 4),
e(p) = B(a+s, b+f) / (B(a,b) p^s (1-p)^f), a martingale if p is the arm's true rate. Two arms: the product
of theirs, least over all pairs of rates on a line, which is tighter than the difference of two intervals
at half the error each.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from router.experiments.stats.contrast import EQUAL, Line
from router.experiments.stats.moments import Array

PRIOR = 0.5  # Jeffreys': loses least where rates are near 0 or 1
_LOG_GAMMA = np.frompyfunc(math.lgamma, 1, 1)
_STEPS = 52


def log_gamma(x: ArrayLike) -> Array:
    """Log of the gamma function, element by element."""
    return np.asarray(_LOG_GAMMA(x), np.float64)


def log_beta(a: ArrayLike, b: ArrayLike) -> Array:
    """Log of the beta function."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return log_gamma(a) + log_gamma(b) - log_gamma(a + b)


def _mixed(successes: ArrayLike, failures: ArrayLike) -> Array:
    s, f = np.asarray(successes, np.float64), np.asarray(failures, np.float64)
    return log_beta(s + PRIOR, f + PRIOR) - log_beta(PRIOR, PRIOR)


def _log_likelihood(s: ArrayLike, f: ArrayLike, p: ArrayLike) -> Array:
    s, f, p = (np.asarray(x, np.float64) for x in (s, f, p))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(s > 0, s * np.log(p), 0) + np.where(f > 0, f * np.log1p(-p), 0)
    return found


def one_arm(successes: ArrayLike, failures: ArrayLike, p: ArrayLike) -> Array:
    """Log evidence against the rate `p`."""
    return _mixed(successes, failures) - _log_likelihood(successes, failures, p)


def one_arm_interval(successes: int, failures: int, alpha: float = 0.05) -> tuple[float, float]:
    """All rates with evidence below 1/alpha."""
    centre = successes / (successes + failures) if successes + failures else 0.5

    def edge(outside: float) -> float:
        inside = centre
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            if float(one_arm(successes, failures, middle)) < -math.log(alpha):
                inside = middle
            else:
                outside = middle
        return outside

    return edge(0.0), edge(1.0)


def two_arms(
    control: tuple[ArrayLike, ArrayLike],
    treatment: tuple[ArrayLike, ArrayLike],
    line: Line = EQUAL,
    offset: ArrayLike | None = None,
) -> Array:
    """Log evidence against treatment = scale * control + offset; arms as (successes, failures).

    `offset`, if given, stands for the line's, one for each element. Infinite where no two rates lie on
    the line.
    """
    (s0, f0), (s1, f1) = (tuple(np.asarray(x, np.float64) for x in arm) for arm in (control, treatment))
    shift = np.asarray(line.offset if offset is None else offset, np.float64)
    if line.scale == 1 and not shift.any():
        p = (s0 + s1) / np.maximum(s0 + s1 + f0 + f1, 1)
        pooled: Array = one_arm(s0, f0, p) + one_arm(s1, f1, p)
        return pooled
    least, most = np.maximum(0, -shift / line.scale), np.minimum(1, (1 - shift) / line.scale)
    p = _likeliest(s0, f0, s1, f1, line.scale, shift, least, most)
    q = np.clip(line.scale * p + shift, 0, 1)
    found: Array = np.where(least > most, np.inf, one_arm(s0, f0, p) + one_arm(s1, f1, q))
    return found


def _likeliest(
    s0: Array, f0: Array, s1: Array, f1: Array, scale: float, shift: Array, least: Array, most: Array
) -> Array:
    """The control's rate at which both arms are likeliest: the log likelihood is concave, so by bisection."""
    low, high = np.broadcast_arrays(least, most, s0 + f0 + s1 + f1)[:2]
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_STEPS):
            p = (low + high) / 2
            q = scale * p + shift
            rising = s0 / p - f0 / (1 - p) + scale * (s1 / q - f1 / (1 - q)) > 0
            low, high = np.where(rising, p, low), np.where(rising, high, p)
    likeliest: Array = (low + high) / 2
    return likeliest


def difference_interval(
    control: tuple[int, int], treatment: tuple[int, int], alpha: float = 0.05
) -> tuple[float, float]:
    """All differences treatment - control with evidence below 1/alpha; both ends at once."""
    rates = [s / (s + f) if s + f else 0.5 for s, f in (control, treatment)]
    inside, outside = np.full(2, rates[1] - rates[0]), np.array([-1.0, 1.0])
    parts, ends = np.linspace(0, 1, 33)[:, None], np.arange(2)
    for _ in range(8):
        points = inside + (outside - inside) * parts
        covered = two_arms(control, treatment, offset=points) < -math.log(alpha)
        last = np.clip(covered.sum(axis=0) - 1, 0, len(parts) - 2)
        inside, outside = points[last, ends], points[last + 1, ends]
    return float(outside[0]), float(outside[1])
