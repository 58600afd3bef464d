"""What stands beside a verdict and gives none: pairs of answers, and the effect at equal answer length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from router.experiments.stats.compare import Arms, Comparison, Plan, compare, compared, p_of
from router.experiments.stats.moments import Array, Metric, Moments, invalid
from router.experiments.stats.sequences import Line, one_arm, one_arm_interval, two_sided, two_sided_bound

# Guardrails: is an arm shown to be worse than control by more than a margin, or shown not to be?
#
# Two one-sided sequences, each with the whole alpha: they answer different questions.


class State(StrEnum):
    """What is shown of a guardrail."""

    BEYOND = "beyond"
    """Worse by more than the margin."""
    WITHIN = "within"
    """Not worse by as much as the margin."""
    OPEN = "open"
    """Neither is shown yet."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A metric that must not get worse by more than `margin`: absolute, or a share of control's value."""

    metric: Metric
    margin: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not (self.margin > 0 and math.isfinite(self.margin)):
            raise invalid(
                f"guardrails[{self.metric.name}].margin",
                f"must be above 0, got {self.margin}: with 0 an arm that is merely equal is never promoted",
            )
        if self.relative and self.margin >= 1:
            raise invalid(f"guardrails[{self.metric.name}].margin", "a relative margin must be below 1")

    @property
    def line(self) -> Line:
        """Where the metric is worse by just the margin. Worse is more, or less, as the metric says."""
        worse = -self.metric.sign * self.margin
        return Line(scale=1 + worse) if self.relative else Line(offset=worse)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A guardrail at this look: the comparison, how sure `beyond` and `within` are, and what is shown."""

    guardrail: Guardrail
    comparison: Comparison
    p_beyond: float
    p_within: float
    state: State


def guard(guardrail: Guardrail, control: Moments, treatment: Moments, plan: Plan) -> Guarded:
    """The guardrail at this look. The p-values are one-sided and valid at any look."""
    metric = guardrail.metric
    arms = Arms(metric, control, treatment, plan)
    beyond, within = (p_of(arms.evidence(guardrail.line, side)) for side in (-metric.sign, metric.sign))
    state = State.OPEN
    if beyond <= plan.alpha:
        state = State.BEYOND
    elif within <= plan.alpha:
        state = State.WITHIN
    return Guarded(guardrail, compared(arms), beyond, within, state)


# Rates of two arms while shares and rates change: which arm was it that each event fell to?
#
# Given that a unit had the event, it is one of the treatment's with the odds of the shares times the ratio of
# the rates, whatever the rates are just then. So a bandit, whose shares follow outcomes, and a rate that goes
# up and down by the hour do no harm: every factor below has a mean of 1 or less under the null (a test
# martingale; for multinomial counts of known shares Lindon and Malek 2022, arXiv:2011.03567). A share may be
# the one by which units were divided, or, of an epoch that is over, the treatment's part of its units: then
# events are drawn without replacement, which spreads less (Hoeffding 1963, theorem 4).


RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""By how many times a rate may be larger: the mixture's grid."""

Epoch = tuple[float, float, float]
"""Events of control and of the treatment, and the treatment's share of both under equal rates."""


def more_events(epochs: Iterable[Epoch], margin: float = 1.0) -> float:
    """Log evidence that the treatment's rate is above `margin` times control's in some epoch.

    Under the null it is at most that in every epoch.
    """
    found = np.array(list(epochs), np.float64).reshape(-1, 3)
    control, treatment, share = found.T
    if ((share <= 0) | (share >= 1)).any():
        raise invalid("share", "must be above 0 and below 1 in every epoch")
    odds = margin * share / (1 - share)
    return _mixture([_log_factor(control, treatment, odds, ratio) for ratio in RATIOS])


def fewer_events(epochs: Iterable[Epoch], margin: float = 1.0) -> float:
    """Log evidence that the treatment's rate is below `margin` times control's in some epoch."""
    return more_events(((t, c, 1 - share) for c, t, share in epochs), 1 / margin)


def _log_factor(control: Array, treatment: Array, odds: Array, ratio: float) -> float:
    """Likelihood of the labels with odds `ratio` times as large, against those of the null."""
    gain = treatment * math.log(ratio) - (treatment + control) * np.log((1 + ratio * odds) / (1 + odds))
    return float(gain.sum())


def _mixture(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + math.log(math.fsum(math.exp(x - most) for x in logs) / len(logs))


# The effect by segment of units, without fishing: corrected intervals, and a test whether effects differ.


@dataclass(frozen=True, slots=True)
class Segmented:
    """Effects by segment; their intervals hold all at once, at any look.

    `p` is that the effect differs between segments at all: only where it is small does a segment's own effect
    mean more than the effect of everybody.
    """

    effects: Mapping[str, Comparison]
    p: float

    def differ(self, alpha: float) -> bool:
        """Whether segments are shown to differ."""
        return self.p <= alpha


def corrected(plan: Plan, many: int) -> Plan:
    """The plan of one of `many` comparisons whose intervals are to hold together (Bonferroni)."""
    if many < 1:
        raise invalid("many", f"must be 1 or more, got {many}")
    return replace(plan, alpha=plan.alpha / many)


def segmented(
    metric: Metric, arms: Mapping[str, tuple[Moments, Moments]], plan: Plan, many: int = 1
) -> Segmented:
    """From each segment's (control, treatment), two units or more in each; `many` such tables are read
    together (treatments times labels).

    Each segment is tested against all others together, difference of differences, Bonferroni over segments.
    """
    found = {name: compare(metric, *both, corrected(plan, many * len(arms))) for name, both in arms.items()}
    if len(arms) < 2:
        return Segmented(found, 1.0)
    least = min(_differs(metric, arms, name, plan) for name in arms)
    return Segmented(found, min(1.0, least * len(arms) * many))


def _differs(metric: Metric, arms: Mapping[str, tuple[Moments, Moments]], name: str, plan: Plan) -> float:
    """p-value of one segment's effect against that of the rest."""
    here = Arms(metric, *arms[name], plan)
    others = [both for other, both in arms.items() if other != name]
    control, treatment = (_merged([both[i] for both in others]) for i in (0, 1))
    rest = Arms(metric, control, treatment, plan)
    if not (bool(here.ready) and bool(rest.ready)):
        return 1.0
    apart = float(here.difference()) - float(rest.difference())
    variance = float(here.variance()) + float(rest.variance())
    n = float(here.n + rest.n)
    return p_of(two_sided(apart / math.sqrt(variance), plan.gain(n, plan.alpha)))


def _merged(parts: Sequence[Moments]) -> Moments:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole


VALUE, LENGTH = 0, 1


@dataclass(frozen=True, slots=True)
class Paired:
    """A shadow arm's answers against the served ones, unit by unit.

    `share` is the mean over units of each unit's share of wins among its pairs that are no ties, with its
    interval; `p` is against one half.
    """

    wins: int
    losses: int
    ties: int
    units: int
    share: float
    low: float
    high: float
    p: float


def paired(
    wins: int, losses: int, ties: int = 0, alpha: float = 0.05, *, units: int, share_sum: float
) -> Paired:
    """The test at this look; valid at any number of units.

    `units` have a pair that is no tie; `share_sum` adds up each one's share of wins among these. Pairs of one
    unit are not independent, so a unit counts once however much it asks. Ties tell nothing of which is better
    and are left out (Dixon and Mood 1946). Exact for what lies within 0 and 1 (`sequences`).
    """
    if min(wins, losses, ties, units) < 0:
        raise invalid("pairs", "wins, losses and ties must not be negative")
    if not 0 <= share_sum <= units or units > wins + losses:
        raise invalid("pairs", f"{units} units cannot have {share_sum:g} of {wins + losses} pairs")
    left = units - share_sum
    low, high = one_arm_interval(share_sum, left, alpha)
    p = math.exp(-max(0.0, float(one_arm(share_sum, left, 0.5))))
    return Paired(wins, losses, ties, units, share_sum / units if units else 0.5, low, high, p)


@dataclass(frozen=True, slots=True)
class LengthAdjusted:
    """Raw and adjusted effect, half of the adjusted one's interval (valid at any look, as all are), the slope
    of the value by length, and the mean lengths of both arms."""

    raw: float
    adjusted: float
    half: float
    slope: float
    lengths: tuple[float, float]


def length_adjusted(control: Moments, treatment: Moments, plan: Plan) -> LengthAdjusted:
    """The effect at equal answer length, from columns (value, length) of both arms.

    People and judges prefer longer answers whatever they say (Dubois, Galambosi, Liang and Hashimoto 2024,
    arXiv:2404.04475). Analysis of covariance with one slope within arms: raw effect - slope * (difference of
    mean lengths). Length comes after assignment, so this describes; it is not a causal effect. The slope's
    own variance counts, because unlike a covariate of CUPED the lengths may truly differ.
    """
    arms = (control, treatment)
    if any(len(m.sums) != 2 or float(m.n) < 3 for m in arms):
        raise invalid("length", "needs the columns (value, length) and three units or more in each arm")
    spread = _within(arms, LENGTH, LENGTH)
    slope = _within(arms, VALUE, LENGTH) / spread if spread > 0 else 0.0
    gap = float(treatment.mean(LENGTH)) - float(control.mean(LENGTH))
    raw = float(treatment.mean(VALUE)) - float(control.mean(VALUE))
    residual = {VALUE: 1.0, LENGTH: -slope}
    own = [float(m.form(residual, residual)) for m in arms]
    left = sum(v * (float(m.n) - 1) for v, m in zip(own, arms, strict=True))
    n = float(control.n + treatment.n)
    welch = sum(v / float(m.n) for v, m in zip(own, arms, strict=True))
    variance = max(welch, left / (n - 2) * sum(1 / float(m.n) for m in arms))
    if spread > 0:
        variance += gap**2 * left / (n - 3) / spread
    half = float(two_sided_bound(plan.gain(n, plan.alpha), plan.alpha)) * math.sqrt(variance)
    lengths = (float(control.mean(LENGTH)), float(treatment.mean(LENGTH)))
    return LengthAdjusted(raw, raw - slope * gap, half, slope, lengths)


def _within(arms: Sequence[Moments], i: int, j: int) -> float:
    """Sum of products of deviations from each arm's own means."""
    return sum(float(m.covariance(i, j)) * (float(m.n) - 1) for m in arms)
