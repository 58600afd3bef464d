"""What is asked beside the primary metric: guardrails, effects by segment, pairs of answers, equal length.

Only guardrails decide: is an arm shown to be worse than control by more than a margin, or shown not to be?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from router.experiments.stats.compare import Arms, Comparison, Plan, compare, compared, p_of
from router.experiments.stats.moments import Metric, Moments, invalid
from router.experiments.stats.sequences import Line, one_arm, one_arm_interval, two_sided, two_sided_bound


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
    """The guardrail at this look, by two one-sided sequences that are valid at any look. Each has the whole
    alpha: they answer different questions."""
    metric = guardrail.metric
    arms = Arms(metric, control, treatment, plan)
    beyond, within = (p_of(arms.evidence(guardrail.line, side)) for side in (-metric.sign, metric.sign))
    state = State.OPEN
    if beyond <= plan.alpha:
        state = State.BEYOND
    elif within <= plan.alpha:
        state = State.WITHIN
    return Guarded(guardrail, compared(arms), beyond, within, state)


@dataclass(frozen=True, slots=True)
class Segmented:
    """Effects by segment, without fishing: their intervals hold all at once, at any look.

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
