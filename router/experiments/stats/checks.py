"""Checks of the pipeline: shares of arms, outcomes that go missing, time to show an outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.experiments.stats.moments import Array, Real, invalid
from router.experiments.stats.sequences import Line, difference_interval, log_gamma, two_arms

ALPHA = 0.001
TOLERATED = 0.01
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
class Missing:
    """Shares of exposed units without an outcome, the interval of their difference, and the alarm."""

    control: float
    treatment: float
    low: float
    high: float
    alarm: bool


def missing_outcomes(control: tuple[int, int], treatment: tuple[int, int]) -> Missing:
    """Do outcomes go missing more often in one arm? Then the units that are left are not alike.

    From (exposed units old enough to have an outcome, those that have one) of two arms. The alarm is raised
    when shares are shown to differ by more than `TOLERATED`; exact, at any look.
    """
    for name, (exposed, seen) in (("control", control), ("treatment", treatment)):
        if not 0 <= seen <= exposed:
            raise invalid(name, f"{seen} units with an outcome among {exposed} exposed ones")
    gone = [(exposed - seen, seen) for exposed, seen in (control, treatment)]
    shares = [g / (g + s) if g + s else 0.0 for g, s in gone]
    apart = abs(shares[1] - shares[0]) > TOLERATED
    edge = Line(offset=math.copysign(TOLERATED, shares[1] - shares[0]))
    shown = float(two_arms(gone[0], gone[1], edge)) >= -math.log(ALPHA)
    low, high = difference_interval(gone[0], gone[1], ALPHA)
    return Missing(shares[0], shares[1], low, high, apart and shown)


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
