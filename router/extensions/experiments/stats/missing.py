"""Outcomes that are missing: whether arms lose unlike shares of them, and how far that may move an effect.

Where units without an outcome are left out, the units that are left may not be alike: one arm may make
other users answer. Bounds say what that can do. Lee 2009 (doi:10.1111/j.1467-937X.2009.00536.x): of the
arm where more units answer, the further ones are the best, or the worst, and are trimmed. It holds if an arm
makes some units answer more and none less.

Of a proportion the test of Lee's bound is one of rates of all units: the arm is better at both bounds where
more of all its units have a good answer and fewer have a bad one. It needs no estimate of the response.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.compare import ArmPair, SequencePlan, p_of
from router.extensions.experiments.stats.moments import (
    Array,
    ComparedMetric,
    Moments,
    Real,
    estimate,
    invalid,
)
from router.extensions.experiments.stats.planned import Looks, found_by_plan
from router.extensions.experiments.stats.sequences import Line, two_arms

ALPHA = 0.001
TOLERATED = 0.1
"""The part by which the response of two arms may differ before the check fails."""
LEE_LEVELS = 2.0
"""The test of Lee's bound has twice alpha, two-sided, so alpha on the side of a gain: arms that are better in
nothing but who answers are promoted in less than 5 % (simulation `missing`)."""
RESPONSE = ComparedMetric("response", Kind.PROPORTION)
EQUAL = 1e-12


@dataclass(frozen=True, slots=True)
class Response:
    """Units of an arm that are old enough to have an outcome, and those that have one."""

    exposed: Real
    seen: Real

    @property
    def share(self) -> Array:
        """Share that has one; 1 where there are no units."""
        exposed = np.asarray(self.exposed, np.float64)
        return np.where(exposed > 0, self.seen / np.maximum(exposed, 1), 1.0)

    @property
    def counts(self) -> tuple[Real, Real]:
        """With an outcome and without."""
        return self.seen, self.exposed - self.seen


@dataclass(frozen=True, slots=True)
class Missing:
    """Shares of mature units without an outcome, and what they may do.

    `alarm`: they are shown to differ by more than `TOLERATED`. `lee` are bounds of the effect, None where
    there are none. `settled`: who answers may not undo an effect that is shown.
    """

    control: float
    treatment: float
    alarm: bool
    lee: tuple[float, float] | None = None
    settled: bool = True


def unlike(control: Response, treatment: Response) -> Array:
    """Log evidence that the response of treatment differs from control's by more than `TOLERATED`. Exact, and
    valid at any look."""
    more, less = 1 + TOLERATED, 1 / (1 + TOLERATED)
    above, below = (two_arms(control.counts, treatment.counts, Line(scale=edge)) for edge in (more, less))
    first, second = control.share, treatment.share
    return np.where(second > more * first, above, np.where(second < less * first, below, 0.0))


def lee_evidence(
    metric: ComparedMetric,
    control: tuple[Response, Moments],
    treatment: tuple[Response, Moments],
    plan: SequencePlan,
    margin: float = 0.0,
) -> Array:
    """Log evidence that treatment is better than control by more than -margin at both of Lee's bounds, of a
    proportion; valid at any look."""
    found = []
    for good, side in SIDES:
        first, second = (all_units(metric, *arm, good) for arm in (control, treatment))
        pair, line = ArmPair(RESPONSE, first, second, plan), _line(control[0], margin, side)
        found.append(np.where(side * pair.difference(line) > 0, pair.evidence(line), 0.0))
    return np.minimum(*found)


def lee_by_plan(
    metric: ComparedMetric,
    control: tuple[Response, Moments],
    treatment: tuple[Response, Moments],
    plan: SequencePlan,
    looks: Looks,
    margin: float = 0.0,
) -> float:
    """The p-value of the same by the planned bound, of all looks; 1 where it is not so now."""
    ps = []
    for good, side in SIDES:
        first, second = (all_units(metric, *arm, good) for arm in (control, treatment))
        line = _line(control[0], margin, side)
        if side * float(ArmPair(RESPONSE, first, second, plan).difference(line)) <= 0:
            return 1.0
        before, after = (
            all_units(metric, Response(units, arm.n), arm, good)
            for units, arm in zip(looks.exposed, looks[:2], strict=True)
        )
        ps.append(found_by_plan(RESPONSE, Looks(before, after, looks.exposed), plan, line, side).p)
    return max(ps)


SIDES = ((True, 1), (False, -1))
"""A better arm has more good answers, and fewer bad ones."""


def _line(control: Response, margin: float, side: int) -> Line:
    return Line(offset=-side * margin * float(np.mean(control.share)) if margin else 0.0)


def all_units(metric: ComparedMetric, response: Response, sums: Moments, good: bool) -> Moments:
    """Good answers, or bad ones, among all units."""
    ones = sums.sums[0] if good == metric.higher_is_better else response.seen - sums.sums[0]
    return Moments(response.exposed, (ones,), (ones,))


def missing_outcomes(
    metric: ComparedMetric,
    control: tuple[Response, Moments],
    treatment: tuple[Response, Moments],
    plan: SequencePlan,
    margin: float = 0.0,
    looks: Looks | None = None,
) -> Missing:
    """What missing outcomes may do to a comparison by a plan; `margin` is how much worse is good enough. With
    the metric's looks Lee's bound of a proportion is tested by the planned bound, too."""
    for name, (response, _) in (("control", control), ("treatment", treatment)):
        if not 0 <= response.seen <= response.exposed:
            text = f"{response.seen} units with an outcome among {response.exposed} exposed ones"
            raise invalid(name, text)
    first, second = float(control[0].share), float(treatment[0].share)
    if min(float(arm[0].exposed) for arm in (control, treatment)) < 2:
        return Missing(1 - first, 1 - second, alarm=False)
    before, after = (Moments(r.exposed, (r.seen,), (r.seen,)) for r, _ in (control, treatment))
    p = p_of(ArmPair(RESPONSE, before, after, plan).evidence())
    alarm = float(unlike(control[0], treatment[0])) >= -math.log(ALPHA)
    if min(float(sums.n) for _, sums in (control, treatment)) < 2:
        return Missing(1 - first, 1 - second, alarm)
    lee = _lee(metric, control, treatment)
    settled = _settled(metric, control, treatment, plan, margin, lee, looks, differs=p <= plan.alpha)
    return Missing(1 - first, 1 - second, alarm, lee, settled)


def _settled(
    metric: ComparedMetric,
    control: tuple[Response, Moments],
    treatment: tuple[Response, Moments],
    plan: SequencePlan,
    margin: float,
    lee: tuple[float, float] | None,
    looks: Looks | None,
    differs: bool,
) -> bool:
    """Of a proportion by its test. Other bounds rest on an estimated response, and count where it differs."""
    if min(float(control[0].share), float(treatment[0].share)) >= 1:
        return True
    if metric.kind.rules.binary:
        level = min(1.0, LEE_LEVELS * plan.alpha)
        if lee_evidence(metric, control, treatment, plan, margin) >= -math.log(level):
            return True
        by_plan = None if looks is None else lee_by_plan(metric, control, treatment, plan, looks, margin)
        return by_plan is not None and by_plan <= level
    if not differs:
        return True
    if lee is None:
        return False
    pair = ArmPair(plain(metric), control[1].only(1), treatment[1].only(1), plan)
    low, high = (float(end) for end in pair.bounds())
    effect = float(pair.difference())
    if metric.higher_is_better:
        return low - (effect - lee[0]) > -margin
    return high + (lee[1] - effect) < margin


def plain(metric: ComparedMetric) -> ComparedMetric:
    """The metric without its covariate."""
    return ComparedMetric(metric.name, metric.kind, metric.higher_is_better, bounds=metric.bounds)


def _lee(
    metric: ComparedMetric, control: tuple[Response, Moments], treatment: tuple[Response, Moments]
) -> tuple[float, float] | None:
    """Bounds of the effect on units that answer in either arm, from means and variances: the mean of what is
    left after a part p was trimmed lies within sd * sqrt(p / (1 - p)) of the mean, and what is trimmed within
    the metric's range. None of a ratio, which is no mean of units' values."""
    if metric.kind.rules.has_denominator:
        return None
    (first, base), (second, other) = control, treatment
    effect = float(other.mean()) - float(base.mean())
    shares = float(first.share), float(second.share)
    trimmed = 1 - min(shares) / max(shares) if max(shares) else 0.0
    if trimmed < EQUAL:
        return effect, effect
    more = shares[1] > shares[0]
    fall, rise = _trimmed(metric, other if more else base, trimmed)
    return (effect - fall, effect + rise) if more else (effect - rise, effect + fall)


def _trimmed(metric: ComparedMetric, sums: Moments, part: float) -> tuple[float, float]:
    """By how much a mean can fall and rise if a part of the units is trimmed."""
    found = estimate(plain(metric), sums.only(1))
    mean, low, high = float(found.value), *metric.range
    odds = part / (1 - part) if part < 1 else math.inf
    most = math.sqrt(float(found.spread) * odds)
    return (
        min(most, odds * (high - mean), mean - low),
        min(most, odds * (mean - low), high - mean),
    )
