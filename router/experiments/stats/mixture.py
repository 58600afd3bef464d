"""Normal mixtures: evidence that may be looked at after every unit.

Robbins 1970 (doi:10.1214/aoms/1177696786) for the two-sided boundary; Howard, Ramdas, McAuliffe and Sekhon
2021 (arXiv:1810.08240) for the one-sided; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024
(arXiv:2103.06476) for why they hold asymptotically for means with estimated variances.

`z` is an effect in standard errors, `gain` = n rho^2 grows with the units and is `peak_gain` where the
boundary is tightest.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from router.experiments.stats.moments import Array

_LOG_ERFC = np.frompyfunc(lambda x: math.log(math.erfc(x)) if x < 26 else -x * x - math.log(x * 1.7725), 1, 1)


def peak_gain(alpha: float) -> float:
    """n rho^2 at the planned size: the choice of rho of arXiv:2103.06476 (section on tuning)."""
    level = -2 * math.log(alpha)
    return level + math.log(level + 1)


def log_normal_cdf(x: ArrayLike) -> Array:
    """Log of the standard normal distribution function."""
    found: Array = np.asarray(_LOG_ERFC(-np.asarray(x, np.float64) / math.sqrt(2)), np.float64) - math.log(2)
    return found


def two_sided(z: ArrayLike, gain: ArrayLike) -> Array:
    """Log evidence that the effect is not 0: mixture over effects N(0, rho^2)."""
    z, gain = np.asarray(z, np.float64), np.asarray(gain, np.float64)
    found: Array = gain / (1 + gain) * z * z / 2 - np.log1p(gain) / 2
    return found


def one_sided(z: ArrayLike, gain: ArrayLike) -> Array:
    """Log evidence that the effect is above 0: mixture over the positive half of N(0, rho^2)."""
    z, gain = np.asarray(z, np.float64), np.asarray(gain, np.float64)
    found: Array = two_sided(z, gain) + math.log(2) + log_normal_cdf(z * np.sqrt(gain / (1 + gain)))
    return found


def two_sided_bound(gain: ArrayLike, alpha: float) -> Array:
    """The |z| at which the two-sided evidence is 1/alpha."""
    gain = np.asarray(gain, np.float64)
    found: Array = np.sqrt((1 + gain) / gain * (np.log1p(gain) - 2 * math.log(alpha)))
    return found


def one_sided_bound(gain: float, alpha: float) -> float:
    """The z at which the one-sided evidence is 1/alpha; by bisection."""
    low, high = -40.0, float(two_sided_bound(gain, alpha)) + 1
    for _ in range(60):
        middle = (low + high) / 2
        if float(one_sided(middle, gain)) < -math.log(alpha):
            low = middle
        else:
            high = middle
    return high
