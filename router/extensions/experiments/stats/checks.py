"""Tests besides the one of the primary metric: guardrails, segments; and of the pipeline: shares of arms,
time to show an outcome.

Of metrics only guardrails decide: is an arm shown to be worse than control by more than a margin, or shown
not to be?
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from router.extensions.experiments.stats.compare import (
    ArmComparison,
    ArmPair,
    SequencePlan,
    compare,
    compared,
    p_of,
)
from router.extensions.experiments.stats.moments import Array, ComparedMetric, Moments, Real, invalid
from router.extensions.experiments.stats.sequences import (
    Line,
    log_gamma,
    two_sided,
)


class State(StrEnum):
    """What is shown of a guardrail."""

    BEYOND = "beyond"
    """Worse by more than the margin."""
    WITHIN = "within"
    """Not worse by as much as the margin."""
    OPEN = "open"
    """Neither is shown yet."""


EARLY_PART = 0.2
"""Share of alpha for harm that the early reading of a guardrail has; the mature reading has the rest."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A metric that must not get worse by more than `margin`: absolute, or a share of control's value. With
    `improve` it must get better, and has no margin.

    `part` is its share of alpha for harm, where it is one of two readings of a metric.
    """

    metric: ComparedMetric
    margin: float
    relative: bool = False
    improve: bool = False
    part: float = 1.0

    def __post_init__(self) -> None:
        if self.improve:
            if self.margin or self.relative:
                text = "must be 0 where the metric has to improve: it must be shown to be better at all"
                raise invalid(f"guardrails[{self.metric.name}].margin", text)
            return
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
    comparison: ArmComparison
    p_beyond: float
    p_within: float
    state: State


def guard(guardrail: Guardrail, control: Moments, treatment: Moments, plan: SequencePlan) -> Guarded:
    """The guardrail at this look, by two one-sided sequences that are valid at any look. They answer
    different questions, so `within` has the whole alpha, and `beyond` the guardrail's part of it.

    Both arms must be equally complete: sums are of units whose values are final.
    """
    metric = guardrail.metric
    arms = ArmPair(metric, control, treatment, plan)
    beyond, within = (p_of(arms.evidence(guardrail.line, side)) for side in (-metric.sign, metric.sign))
    beyond = min(1.0, beyond / guardrail.part)
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

    effects: Mapping[str, ArmComparison]
    p: float

    def differ(self, alpha: float) -> bool:
        """Whether segments are shown to differ."""
        return self.p <= alpha


def corrected(plan: SequencePlan, many: int) -> SequencePlan:
    """The plan of one of `many` comparisons whose intervals are to hold together (Bonferroni)."""
    if many < 1:
        raise invalid("many", f"must be 1 or more, got {many}")
    return replace(plan, alpha=plan.alpha / many)


def segmented(
    metric: ComparedMetric, arms: Mapping[str, tuple[Moments, Moments]], plan: SequencePlan, many: int = 1
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


def _differs(
    metric: ComparedMetric, arms: Mapping[str, tuple[Moments, Moments]], name: str, plan: SequencePlan
) -> float:
    """p-value of one segment's effect against that of the rest."""
    here = ArmPair(metric, *arms[name], plan)
    others = [both for other, both in arms.items() if other != name]
    control, treatment = (_merged([both[i] for both in others]) for i in (0, 1))
    rest = ArmPair(metric, control, treatment, plan)
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


ALPHA = 0.001
CONCENTRATION = 100.0  # how close to the intended shares the mixture looks; arXiv:2011.03567 has the same


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Units by arm, log evidence now and the most there has been, and whether it reached 1/alpha."""

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    log_evidence: float
    peak: float
    alpha: float = ALPHA

    @property
    def alarm(self) -> bool:
        """Whether the shares are not what they should be. An alarm stays."""
        return self.peak >= -math.log(self.alpha)

    @property
    def p(self) -> float:
        """Always-valid p-value."""
        return math.exp(-max(0.0, self.peak))


def sample_ratio(counts: Sequence[int], weights: Sequence[float], peak: float = 0.0) -> SampleRatio:
    """Do the arms get the shares that they should? Units counted by arm, once each; `peak` is the `peak` of
    the look before.

    Lindon and Malek 2022 (NeurIPS, arXiv:2011.03567): Dirichlet-multinomial mixture against the intended
    shares; unlike a chi-square test it may be looked at after every exposure. Counts under other weights (an
    earlier phase) are tests of their own.
    """
    if len(counts) != len(weights) or not counts:
        raise invalid("counts", f"{len(weights)} arms need as many counts, got {len(counts)}")
    if min(counts) < 0:
        raise invalid("counts", "must not be negative")
    if not all(w > 0 for w in weights) or not math.isclose(math.fsum(weights), 1, abs_tol=1e-9):
        raise invalid("weights", "must be above 0 and sum to 1")
    total = sum(counts)
    terms = (float(arm_term(n, w)) for n, w in zip(counts, weights, strict=True))
    now = math.fsum(terms) - float(total_term(total))
    expected = tuple(total * w for w in weights)
    return SampleRatio(tuple(counts), expected, now, max(peak, now))


def arm_term(count: Real, weight: float) -> Array:
    """What an arm with `count` units adds to the log evidence."""
    prior = CONCENTRATION * weight
    found: Array = log_gamma(prior + count) - math.lgamma(prior) - count * math.log(weight)
    return found


def total_term(total: Real) -> Array:
    """What `total` units of all arms take from the log evidence."""
    return log_gamma(CONCENTRATION + total) - math.lgamma(CONCENTRATION)


@dataclass(frozen=True, slots=True)
class Maturity:
    """Exposed units whose outcome window is over, among all exposed units."""

    matured: int
    exposed: int

    @property
    def share(self) -> float:
        """Matured share; 0 where nothing was exposed."""
        return self.matured / self.exposed if self.exposed else 0.0


def maturity(exposures: Iterable[tuple[float, int]], now: float, window: float) -> Maturity:
    """How much has had time to show an outcome: from (end of a time bucket, units first exposed in it), all
    times in seconds. A bucket is mature when even its last unit's window is over.
    """
    if not window >= 0:
        raise invalid("window", f"must be 0 seconds or more, got {window}")
    matured = exposed = 0
    for end, units in exposures:
        exposed += units
        matured += units if end + window <= now else 0
    return Maturity(matured, exposed)
