"""Sequential sample-ratio test: do the arms get the shares that they should?

Lindon and Malek 2022 (NeurIPS, arXiv:2011.03567): Dirichlet-multinomial mixture against the intended
shares. Unlike a chi-square test it may be looked at after every exposure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.experiments.stats.exact import log_gamma
from router.experiments.stats.moments import Array, Real, invalid

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


def sample_ratio(
    counts: Sequence[int], weights: Sequence[float], peak: float = 0.0, alpha: float = ALPHA
) -> SampleRatio:
    """The test on units counted by arm, once each. `peak` is the `peak` of the look before.

    Counts under other weights (an earlier phase) are tests of their own.
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
    return SampleRatio(tuple(counts), expected, now, max(peak, now), alpha)


def arm_term(count: Real, weight: float) -> Array:
    """What an arm with `count` units adds to the log evidence."""
    prior = CONCENTRATION * weight
    found: Array = log_gamma(prior + count) - math.lgamma(prior) - count * math.log(weight)
    return found


def total_term(total: Real) -> Array:
    """What `total` units of all arms take from the log evidence."""
    return log_gamma(CONCENTRATION + total) - math.lgamma(CONCENTRATION)
