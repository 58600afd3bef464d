"""One arm against control: effect, interval and p-value, valid at every look.

Means, ratios and anything with a covariate: asymptotic sequence after burn-in, nothing before it.
Proportions: exact sequence until burn-in, asymptotic after it, and alpha is divided between the two, so
that the switch costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.experiments.stats import exact, mixture
from router.experiments.stats.contrast import EQUAL, Line, contrast, relative_interval
from router.experiments.stats.cuped import adjusted
from router.experiments.stats.estimates import Estimate, estimate
from router.experiments.stats.metric import Kind, Metric
from router.experiments.stats.moments import Moments, Real
from router.experiments.stats.plan import Plan


class Method(StrEnum):
    """Which sequence an interval is of."""

    ASYMPTOTIC = "asymptotic"
    EXACT = "exact"
    BURN_IN = "burn-in"
    """No interval yet."""


class Span(NamedTuple):
    """An interval."""

    low: float
    high: float


EVERYTHING = Span(-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Treatment against control. `p` is for the line asked about, the intervals are of the differences."""

    metric: str
    units: tuple[int, int]
    values: tuple[float, float]
    effect: float
    interval: Span
    relative: float | None
    relative_interval: Span | None
    p: float
    method: Method


def pair(metric: Metric, control: Moments, treatment: Moments) -> tuple[Estimate, Estimate]:
    """Both arms' estimates, the covariate used where there is one."""
    if metric.covariate:
        first, second = adjusted(metric, (control, treatment))
        return first, second
    return estimate(metric, control), estimate(metric, treatment)


def burnt_in(metric: Metric, control: Moments, treatment: Moments, plan: Plan) -> NDArray[np.bool_]:
    """Whether the asymptotic sequence may be used: truth values, one for each element."""
    enough = np.asarray(np.minimum(control.n, treatment.n) >= plan.burn_in_units)
    if metric.kind is Kind.PROPORTION:
        ones = control.sums[0] + treatment.sums[0]
        zeros = control.n + treatment.n - ones
        enough = enough & (np.minimum(ones, zeros) >= plan.burn_in_events)
    varies = np.asarray(contrast(*pair(metric, control, treatment)).variance) > 0
    return np.asarray(enough & varies)


def has_exact(metric: Metric) -> bool:
    """Whether there is an exact sequence for it."""
    return metric.kind is Kind.PROPORTION and not metric.covariate


def asymptotic_alpha(metric: Metric, plan: Plan) -> float:
    """The part of alpha that the asymptotic sequence has."""
    return plan.alpha * (1 - plan.exact_share if has_exact(metric) else 1)


def gain(n: Real, plan: Plan, alpha: float) -> Real:
    """n rho^2 of the mixture that is tightest at the planned size."""
    return mixture.peak_gain(alpha) * n / plan.units


def counts(moments: Moments) -> tuple[Real, Real]:
    """Successes and failures of a proportion."""
    return moments.sums[0], moments.n - moments.sums[0]


def log_evidence(
    metric: Metric, control: Moments, treatment: Moments, plan: Plan, line: Line = EQUAL
) -> Real:
    """Log of 1/p against a line; reaching log(1/alpha) at any look is an error of chance at most alpha."""
    share = plan.exact_share
    difference = contrast(*pair(metric, control, treatment), line)
    level = asymptotic_alpha(metric, plan)
    approximate = mixture.two_sided(difference.z, gain(difference.n, plan, level))
    ready = burnt_in(metric, control, treatment, plan)
    if not has_exact(metric):
        return np.where(ready, approximate, 0.0)
    found, early = np.array(approximate + math.log(1 - share)), ~ready
    (s0, f0), (s1, f1) = (tuple(np.asarray(x)[early] for x in counts(arm)) for arm in (control, treatment))
    found[early] = exact.two_arms((s0, f0), (s1, f1), line) + math.log(share)
    return found


def compare(
    metric: Metric, control: Moments, treatment: Moments, plan: Plan, line: Line = EQUAL
) -> Comparison:
    """The comparison at this look. Raises InvalidRequest if the sums cannot be of this metric."""
    first, second = pair(metric, control, treatment)
    evidence = float(log_evidence(metric, control, treatment, plan, line))
    difference = contrast(first, second)
    interval, relative, method = EVERYTHING, None, Method.BURN_IN
    if bool(burnt_in(metric, control, treatment, plan)):
        level = asymptotic_alpha(metric, plan)
        bound = float(mixture.two_sided_bound(gain(difference.n, plan, level), level))
        half = bound * math.sqrt(float(difference.variance))
        interval = Span(float(difference.value) - half, float(difference.value) + half)
        relative = relative_interval(first, second, bound)
        method = Method.ASYMPTOTIC
    elif has_exact(metric):
        (s0, f0), (s1, f1) = counts(control), counts(treatment)
        level = plan.alpha * plan.exact_share
        interval = Span(*exact.difference_interval((int(s0), int(f0)), (int(s1), int(f1)), level))
        method = Method.EXACT
    base = float(first.value)
    return Comparison(
        metric.name,
        (int(control.n), int(treatment.n)),
        (base, float(second.value)),
        float(difference.value),
        interval,
        float(difference.value) / base if base else None,
        Span(*relative) if relative else None,
        math.exp(-max(0.0, evidence)),
        method,
    )
