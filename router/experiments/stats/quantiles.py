"""Quantiles of two arms compared, exact at every look: of units' times, in bins of a logarithmic grid.

Howard and Ramdas 2022 (Bernoulli 28(3), arXiv:1906.09712): whether a unit lies below the quantile is a coin
whose rate is known, so a test of that rate at each point of the grid, turned round, is a confidence sequence
of the quantile. No union over the grid is paid for, since the true quantile is one point of it. Of two arms
the evidence is the least over all places where the first arm's quantile may lie.

The test of both rates is a mixture of likelihood ratios against the level of the quantile. A rate above the
level is held against the units below a point, a rate below it against those up to the point, so that equal
values need no further care. Each ratio then has a mean of at most 1 whatever rates the claim allows, so the
mixture is a supermartingale (Ville 1939): no normal distribution, no least number of units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.experiments.model import NoInterval
from router.experiments.stats.compare import ArmComparison, ConfidenceInterval, Method, SequencePlan, p_of
from router.experiments.stats.moments import Array, Moments, invalid
from router.experiments.stats.sequences import EQUAL, Line
from router.experiments.times import BINS, FIRST_EDGE, STEP

EDGES: Array = np.append(FIRST_EDGE * np.exp(STEP * np.arange(BINS - 1)), np.inf)
"""The largest value of each bin, in seconds."""
SHOWN_AT_PLAN = 3.0
"""The smallest effect of the mixture, in its standard errors at the planned size."""
GROWTH, MOST = 1.5, 9.0
"""Each effect is so many times the one before; the largest shift of log odds."""
BOTH, ALONE = 0.6, 0.2
"""Weights of alternatives of both arms, and of each arm alone."""
HALVINGS = 24


def bins_up_to(seconds: ArrayLike) -> NDArray[np.int64]:
    """How many bins lie wholly or partly at or below a value; 0 below 0."""
    found = np.asarray(seconds, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.ceil(np.log(np.maximum(found, 1e-300) / FIRST_EDGE) / STEP - 1e-9)
    places = np.clip(np.where(np.isfinite(steps), steps, BINS), 0, BINS - 1).astype(np.int64) + 1
    return np.where(found < 0, 0, places)


class Alternatives(NamedTuple):
    """Pairs of rates, with the logarithm of each pair's weight."""

    first: Array
    second: Array
    weight: Array


@dataclass(frozen=True, eq=False)
class TimeCounts:
    """Units of an arm by the bin of their time, [BINS]."""

    bins: Array

    @property
    def n(self) -> float:
        """Units."""
        return float(self.bins.sum())


Sums: TypeAlias = Moments | TimeCounts
"""What an arm has of a metric: of a quantile units by bin, of others sums of powers."""


@cache
def alternatives(level: float, share: float, units: int) -> Alternatives:
    """Where the first arm's quantile is the smaller one: more of its units lie below a point, or fewer of the
    second arm's. `share`: the first arm's part of the units.

    Both shifts are as far from the level as two arms with one difference are. Each arm alone rules out
    points that are too far from its own quantile.
    """
    spread = math.sqrt(level * (1 - level) * units)
    middle = math.sqrt((1 - share) / share), math.sqrt(share / (1 - share))
    sides = ((*middle, BOTH), (1 / math.sqrt(share), 0.0, ALONE), (0.0, 1 / math.sqrt(1 - share), ALONE))
    found = [
        (x * size, -y * size, whole * weight)
        for x, y, whole in sides
        for size, weight in _sizes(SHOWN_AT_PLAN / spread, MOST / max(x, y))
    ]
    first, second, weight = np.array(found).T
    odds = level / (1 - level)
    rates = [1 / (1 + np.exp(-shift) / odds) for shift in (first, second)]
    return Alternatives(rates[0], rates[1], np.log(weight))


def _sizes(least: float, most: float) -> Iterator[tuple[float, float]]:
    """Sizes of effects with their weights: small ones weigh more, what is large is shown soon anyway."""
    steps = max(0, math.ceil(math.log(most / least, GROWTH)))
    weights = [1 / (1 + i) for i in range(steps + 1)]
    for i, weight in enumerate(weights):
        yield min(least * GROWTH**i, most), weight / sum(weights)


def _log_ratio(rate: Array, level: float, below: Array, n: Array) -> Array:
    """[..., rates]: log likelihood ratio of rates against the level."""
    ones = below[..., None] * np.log(rate / level)
    found: Array = ones + (n - below)[..., None] * np.log((1 - rate) / (1 - level))
    return found


def _mixed(each: Array) -> Array:
    top = each.max(axis=-1)
    found: Array = top + np.log(np.exp(each - top[..., None]).sum(axis=-1))
    return found


@dataclass(frozen=True)
class QuantilePair:
    """Two arms' units by bin, [..., BINS] each, many experiments at once. `level` 0.95: the value that 95 %
    of units do not pass. `plan.units` and `plan.share` only say where the evidence is strongest."""

    level: float
    control: Array
    treatment: Array
    plan: SequencePlan

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise invalid("level", f"must be above 0 and below 1, got {self.level}")
        if self.control.shape[-1] != BINS or self.treatment.shape[-1] != BINS:
            raise invalid("counts", f"must be units by bin, {BINS} of them")

    @cached_property
    def below(self) -> tuple[Array, Array]:
        """Units of both arms in the first 0, 1, ... bins."""
        start = np.zeros((*self.control.shape[:-1], 1))
        first, second = (
            np.concatenate([start, np.cumsum(arm, axis=-1)], axis=-1)
            for arm in (self.control, self.treatment)
        )
        return first, second

    @cached_property
    def values(self) -> tuple[Array, Array]:
        """Both quantiles; not a number where an arm has no unit."""
        first, second = (quantile_of(self.level, below) for below in self.below)
        return first, second

    def evidence(self, line: Line = EQUAL, side: int = 1) -> Array:
        """Log evidence that treatment's quantile is above (`side` 1) or below (-1) scale * control's +
        offset. If it is not, the chance that this reaches log(1/alpha) at any look is at most alpha."""
        control, treatment = self.below
        if side > 0:
            return self._least(control, treatment, line.scale * EDGES + line.offset, 1 - self.plan.share)
        return self._least(treatment, control, (EDGES - line.offset) / line.scale, self.plan.share)

    def _least(self, first: Array, second: Array, moved: Array, share: float) -> Array:
        """That the second arm's quantile is above a line of the first's: the least over the bins in which
        the first's may lie. There it is beyond the bin's lower edge, and the second's, if the claim is wrong,
        not beyond `moved`."""
        under, upto = first[..., :-1], second[..., bins_up_to(moved)]
        whole = np.stack([under, upto]).reshape(-1, BINS)
        differs = np.append(True, (np.diff(whole, axis=-1) != 0).any(axis=0))
        under, upto = under[..., differs], upto[..., differs]
        pairs = alternatives(self.level, share, self.plan.units)
        each = pairs.weight + _log_ratio(pairs.first, self.level, under, first[..., -1:])
        found: Array = _mixed(each + _log_ratio(pairs.second, self.level, upto, second[..., -1:])).min(
            axis=-1
        )
        return found

    def interval(self) -> ConfidenceInterval:
        """Of the difference of both quantiles, of one experiment; infinite where nothing bounds it yet."""
        control, treatment = (float(value) for value in self.values)
        far = float(EDGES[-2])
        return self._between(lambda size: Line(offset=size), treatment - control, (-far, far))

    def relative_interval(self) -> ConfidenceInterval | None:
        """Of the difference as a share of control's quantile; None where it has no upper end yet."""
        control, treatment = (float(value) for value in self.values)
        far = math.log(EDGES[-2] / EDGES[0])
        low, high = self._between(
            lambda size: Line(scale=math.exp(size)), math.log(treatment / control), (-far, far)
        )
        return ConfidenceInterval(math.expm1(low), math.expm1(high)) if math.isfinite(high) else None

    def _between(
        self, line: Callable[[float], Line], inside: float, outside: tuple[float, float]
    ) -> ConfidenceInterval:
        """All lines that no evidence rules out, by bisection: evidence grows from the likeliest outwards."""
        bound = math.log(2 / self.plan.alpha)
        ends = []
        for side, end in zip((1, -1), outside, strict=True):
            if float(self.evidence(line(end), side)) < bound:
                ends.append(math.copysign(math.inf, end))
                continue
            near, far = inside, end
            for _ in range(HALVINGS):
                middle = (near + far) / 2
                if float(self.evidence(line(middle), side)) < bound:
                    near = middle
                else:
                    far = middle
            ends.append(far)
        return ConfidenceInterval(*ends)

    def ranges(self) -> tuple[ConfidenceInterval, ConfidenceInterval]:
        """Of each arm's own quantile, of one experiment."""
        share, units = self.plan.share, self.plan.units
        control, treatment = self.below
        first = own_range(self.level, control, (1 - share) * units, self.plan.alpha)
        return first, own_range(self.level, treatment, share * units, self.plan.alpha)


def own_range(level: float, below: Array, units: float, alpha: float) -> ConfidenceInterval:
    """Of one arm's quantile, from its units in the first 0, 1, ... bins and its planned units."""
    more, less = own_evidence(level, below, units)
    bound = math.log(2 / alpha)
    lows, highs = EDGES[less[1:] >= bound], EDGES[more[1:] >= bound]
    return ConfidenceInterval(
        float(lows[-1]) if len(lows) else 0.0, float(highs[0]) if len(highs) else math.inf
    )


def own_evidence(level: float, below: Array, units: float) -> tuple[Array, Array]:
    """Log evidence, at each edge, that more and that fewer units than `level` of them are below it."""
    spread = math.sqrt(level * (1 - level) * units)
    sizes, weights = np.array(list(_sizes(SHOWN_AT_PLAN / spread, MOST))).T
    odds = level / (1 - level)
    more, less = (
        _mixed(
            np.log(weights)
            + _log_ratio(1 / (1 + np.exp(-side * sizes) / odds), level, below, below[..., -1:])
        )
        for side in (1, -1)
    )
    return more, less


def quantile_of(level: float, below: Array) -> Array:
    """The quantile from units in the first 0, 1, ... bins, within its bin by the logarithm."""
    n = below[..., -1:]
    place = (below[..., 1:] >= level * n - 1e-9).argmax(axis=-1)[..., None]
    before, upto = (np.take_along_axis(below, place + i, -1) for i in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (level * n - before) / (upto - before)
    last = np.minimum(place, BINS - 2)
    found: Array = (EDGES[last] * np.exp(STEP * (part - 1)))[..., 0]
    return np.where(n[..., 0] > 0, found, np.nan)


def units_needed(level: float, alpha: float) -> int:
    """Units of an arm before its quantile is bounded from both sides: about as many as make it unlikely that
    all lie on one side."""
    return math.ceil(math.log(20 * 2 / alpha) / -math.log(max(level, 1 - level)))


def compare_quantiles(name: str, pair: QuantilePair) -> ArmComparison:
    """Both arms of one experiment at this look; p is that the quantiles are equal."""
    control, treatment = (float(value) for value in pair.values)
    units = int(pair.control.sum()), int(pair.treatment.sum())
    interval, relative = pair.interval(), pair.relative_interval()
    waiting = None
    if not (math.isfinite(interval.low) or math.isfinite(interval.high)):
        have, need = min(units), units_needed(pair.level, pair.plan.alpha)
        text = f"{have:,} units with {name} in the smaller arm, about {need:,} are needed"
        waiting = NoInterval("too-few-units", text, max(1, need - have) * sum(units) // max(1, have))
    return ArmComparison(
        name,
        units,
        (control, treatment),
        treatment - control,
        interval,
        treatment / control - 1,
        relative,
        min(1.0, 2 * min(p_of(pair.evidence(EQUAL, side)) for side in (1, -1))),
        Method.EXACT,
        waiting,
        pair.ranges(),
    )
