"""How many units an experiment takes."""

from __future__ import annotations

import math
from statistics import NormalDist

from router.experiments.stats.moments import invalid


def fixed_size(effect: float, variances: tuple[float, float], alpha: float = 0.05, power: float = 0.8) -> int:
    """Units in each of two equal arms for a test with one look at its end (two-sided).

    `variances` of one unit's value in both arms: p (1 - p) for a proportion.
    """
    if effect == 0 or not math.isfinite(effect):
        raise invalid("effect", "must be a finite number other than 0")
    if min(variances) < 0 or sum(variances) <= 0:
        raise invalid("variances", "must not be negative, nor both 0")
    if not 0 < alpha < 1 or not alpha < power < 1:
        raise invalid("power", "alpha must be above 0, power above alpha, both below 1")
    quantile = NormalDist().inv_cdf
    z = quantile(1 - alpha / 2) + quantile(power)
    return math.ceil(z * z * sum(variances) / effect**2)
