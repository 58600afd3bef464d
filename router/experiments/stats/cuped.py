"""CUPED: what was known of a unit before the experiment explains part of its outcome, and is taken out.

Deng, Xu, Kohavi and Walker 2013 (WSDM, doi:10.1145/2433396.2433413): y - theta (x - mean x), with theta
from all arms together, so that the effect stays what it is and its variance shrinks by corr(x, y) squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from router.experiments.stats.estimates import Estimate, check, linear
from router.experiments.stats.metric import Metric
from router.experiments.stats.moments import Moments, Real


def adjusted(metric: Metric, arms: Sequence[Moments]) -> list[Estimate]:
    """Estimates of all arms, each moved to the covariate's overall value."""
    for moments in arms:
        check(metric, moments)
    everybody = reduce(Moments.merge, arms)
    theta, centre = _slope(metric, everybody)
    return [_adjusted(metric, moments, theta, centre) for moments in arms]


def _slope(metric: Metric, moments: Moments) -> tuple[Real, Real]:
    _, outcome = linear(metric.kind, moments)
    centre, covariate = linear(metric.kind, moments, metric.columns // 2)
    spread = np.asarray(moments.form(covariate, covariate))
    shared = np.asarray(moments.form(outcome, covariate))
    return np.divide(shared, spread, out=np.zeros_like(spread), where=spread > 0), centre


def _adjusted(metric: Metric, moments: Moments, theta: Real, centre: Real) -> Estimate:
    value, outcome = linear(metric.kind, moments)
    before, covariate = linear(metric.kind, moments, metric.columns // 2)
    gradient = {**outcome, **{column: -theta * slope for column, slope in covariate.items()}}
    return Estimate(
        moments.n, value - theta * (before - centre), moments.form(gradient, gradient) / moments.n
    )
