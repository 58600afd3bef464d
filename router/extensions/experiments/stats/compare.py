"""One arm against control: effect, interval and p-value, valid at every look and at every split.

Proportions, and means of capped values, have an exact sequence from the first unit; the asymptotic one takes
over when the smaller arm has enough to go by, and alpha is divided between the two, so that the switch costs
nothing. Everything else has the asymptotic sequence then, and before it no interval but what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.extensions.experiments.model import NoInterval
from router.extensions.experiments.stats import sequences
from router.extensions.experiments.stats.moments import (
    ArmEstimate,
    Array,
    ComparedMetric,
    Moments,
    Real,
    estimates_of_both,
    invalid,
)
from router.extensions.experiments.stats.sequences import EQUAL, Line


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """What is fixed before an experiment starts, and what its guarantees rest on.

    `units` is the planned number of both arms together: sequences are tightest there, and valid at any.
    Asymptotic sequences begin at `burn_in_units` in each arm, where nothing bounds a unit's value at
    `unbounded_units`: a tail that is met less often than once in a third of that may not have shown itself.
    A proportion needs `burn_in_events` ones and as many zeros in both arms together, of which the smaller
    arm's share is `arm_events` or more. For the rest see `tail`. Until then what is bounded has the exact
    sequence, which has `exact_share` of alpha to itself.
    """

    alpha: float = 0.05
    units: int = 5000
    burn_in_units: int = 100
    burn_in_events: int = 10
    exact_share: float = 0.2
    unbounded_units: int = 750
    arm_events: float = 1.0
    volume: float = 30.0
    """Units with equal denominators that an arm's denominators are worth: (sum d)^2 / sum d^2."""
    tail: float = 24.0
    """How many units must make up the difference: 1 / skewness^2 of the difference of means."""
    heavy: float = 4.0
    """Skewness of an arm's values, where nothing caps them, above which `tail` grows by its square: the
    largest values have not come yet, so what was seen is less skewed than what will come."""

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("exact_share", self.exact_share)):
            if not 0 < value < 1:
                raise invalid(f"plan.{name}", f"must be above 0 and below 1, got {value}")
        if self.alpha > 0.2:
            raise invalid("plan.alpha", f"above 0.2 nothing is shown; 0.05 is usual, got {self.alpha}")
        if self.units < 2 * self.burn_in_units:
            raise invalid("plan.units", f"must be twice burn_in_units or more, got {self.units}")
        if self.burn_in_units < 20 or self.burn_in_events < 1:
            raise invalid("plan.burn_in_units", "must be 20 or more, and burn_in_events 1 or more")

    def gain(self, n: Real, alpha: float) -> Real:
        """n rho^2 of the mixture that is tightest at the planned size."""
        return sequences.peak_gain(alpha) * n / self.units


class Method(StrEnum):
    """Which sequence an interval is of."""

    ASYMPTOTIC = "asymptotic"
    EXACT = "exact"
    BURN_IN = "burn-in"
    """No interval yet."""
    PLANNED = "planned"
    """Its better end is by the bound until the planned size (`planned.py`)."""


class ConfidenceInterval(NamedTuple):
    """An interval."""

    low: float
    high: float


CAP_DEVIATIONS = 3
"""About one unit in a hundred lies so far above the mean, if values are log-normal and skewed."""
FAR = 14.0
"""Logarithm of a million: no rate is so many times another's."""


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """Treatment against control. `p` is for the line asked about, the intervals are of the differences.

    All of it may be looked at as often as one likes.
    """

    metric: str
    units: tuple[int, int]
    values: tuple[float, float]
    effect: float
    interval: ConfidenceInterval
    relative: float | None
    relative_interval: ConfidenceInterval | None
    p: float
    method: Method
    waiting: NoInterval | None = None


@dataclass(frozen=True)
class ArmPair:
    """Two arms' sums on one metric, many experiments at once: everything that is computed of them.

    A variance is the larger of two: of each arm by its own units (Welch), and of both by all units within
    arms. A small arm that has had no event yet, or no large value, has next to no variance of its own; that
    of all units is what it has if the arms are alike, so it cannot seem surer than they are.
    """

    metric: ComparedMetric
    control: Moments
    treatment: Moments
    plan: SequencePlan

    @cached_property
    def estimates(self) -> tuple[ArmEstimate, ArmEstimate]:
        """Control's and treatment's."""
        return estimates_of_both(self.metric, self.control, self.treatment)

    @cached_property
    def smaller(self) -> Real:
        """Units of the smaller arm."""
        return np.minimum(self.control.n, self.treatment.n)

    @cached_property
    def n(self) -> Real:
        """Units of both."""
        return self.control.n + self.treatment.n

    @property
    def counted(self) -> bool:
        """Whether a unit is 0 or 1 and nothing else is known of it: then the likelihood is known."""
        return self.metric.kind.rules.binary and not self.metric.covariate

    @property
    def has_exact(self) -> bool:
        """Whether there is an exact sequence: values lie between two bounds."""
        return math.isfinite(sum(self.metric.range)) and not self.metric.covariate

    @property
    def level(self) -> float:
        """The part of alpha that the asymptotic sequence has."""
        return self.plan.alpha * (1 - self.plan.exact_share if self.has_exact else 1)

    @property
    def counts(self) -> tuple[tuple[Real, Real], tuple[Real, Real]]:
        """Successes and failures of both arms; of capped values their sums within 0 and 1."""
        low, high = self.metric.range
        successes = [(arm.sums[0] - low * arm.n) / (high - low) for arm in (self.control, self.treatment)]
        kept = [
            np.clip(s, 0, arm.n) for s, arm in zip(successes, (self.control, self.treatment), strict=True)
        ]
        return (kept[0], self.control.n - kept[0]), (kept[1], self.treatment.n - kept[1])

    @cached_property
    def rates(self) -> sequences.TwoRates:
        """The same, to be held against lines."""
        return sequences.TwoRates(*self.counts)

    @cached_property
    def variances(self) -> tuple[tuple[Real, Real], tuple[Real, Real]]:
        """(control's, treatment's) variance of the value: by own units, and by those of both arms."""
        first, second = self.estimates
        spreads = [first.spread, second.spread]
        low, high = self.metric.range
        if math.isfinite(low + high):  # what was not met yet may be at either bound, as often as 1 in n
            spreads = [
                e.spread + np.maximum(high - e.value, e.value - low) ** 2 / e.n for e in (first, second)
            ]
        own = (spreads[0] / first.n, spreads[1] / second.n)
        if self.metric.kind.rules.has_denominator:
            spreads = self._around_common_ratio(spreads)
        weight = (1 / first.n + 1 / second.n) / (self.n - 2)
        return own, ((first.n - 1) * spreads[0] * weight, (second.n - 1) * spreads[1] * weight)

    def _around_common_ratio(self, spreads: list[Real]) -> list[Real]:
        """A unit with a large denominator draws its arm's ratio to itself and hides its own distance from it;
        less so from the ratio of both arms."""
        arms = (self.control, self.treatment)
        common = sum(arm.sums[0] for arm in arms) / sum(arm.sums[1] for arm in arms)
        found = []
        for arm, spread in zip(arms, spreads, strict=True):
            squares = arm.product(0, 0) - 2 * common * arm.product(0, 1) + common**2 * arm.product(1, 1)
            found.append(np.maximum(spread, squares * arm.n / arm.sums[1] ** 2))
        return found if not self.metric.covariate else spreads

    def variance(self, scale: float = 1.0) -> Real:
        """Of treatment - scale * control."""
        own, pooled = (treated + scale**2 * control for control, treated in self.variances)
        return np.maximum(own, pooled)

    def difference(self, line: Line = EQUAL) -> Real:
        """Treatment - (scale * control + offset)."""
        first, second = self.estimates
        return second.value - line.scale * first.value - line.offset

    def z(self, line: Line = EQUAL) -> Array:
        """The difference from a line in standard errors; 0 where nothing varies and nothing differs."""
        if self.counted:
            return self.rates.deviance(self.rates.against(line.scale, line.offset))
        value, error = np.asarray(self.difference(line), np.float64), np.sqrt(self.variance(line.scale))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(value == 0, 0.0, value / error)

    def skew_squared(self) -> Real:
        """Skewness of the difference, squared: by each arm's own third moment, and with that of both arms in
        place of the smaller arm's, whichever is more. It falls as 1/n."""
        first, second = self.estimates
        both = (first.n * first.third + second.n * second.third) / self.n
        own = second.third / second.n**2 - first.third / first.n**2
        alike = both * (1 / second.n**2 - 1 / first.n**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.maximum(own**2, alike**2) / np.asarray(self.variance(), np.float64) ** 3

    def tail_needed(self) -> Array:
        """How many units must make up the difference: `tail`, more where the arm that makes its skewness
        has a heavy tail."""
        tail = np.full(np.shape(self.n), self.plan.tail)
        if math.isfinite(sum(self.metric.range)):
            return tail
        first, second = self.estimates
        spreads = [np.asarray(e.spread, np.float64) for e in (first, second)]
        mostly = np.abs(first.third) / first.n**2 > np.abs(second.third) / second.n**2
        with np.errstate(divide="ignore", invalid="ignore"):
            skews = [np.abs(e.third) / v**1.5 for e, v in zip((first, second), spreads, strict=True)]
        skew = np.where(mostly, *skews)  # not known where nothing varies
        heavier = np.where(np.isfinite(skew), np.clip(skew / self.plan.heavy, 1.0, 1e6), 1.0)
        needed: Array = tail * heavier**2
        return needed

    def needs(self) -> Iterator[tuple[NDArray[np.bool_], Callable[[], NoInterval]]]:
        """What the asymptotic sequence needs: whether it is there, and what to say while it is not."""
        yield self._enough_units()
        if self.metric.kind.rules.has_denominator:
            yield self._enough_volume()
        if self.metric.kind.rules.binary:
            yield self._enough_events()
        yield self._varies()
        if not self.counted:
            yield self._no_tail()

    @cached_property
    def bound(self) -> Array:
        """The |z| from which on the asymptotic sequence rules a line out."""
        return sequences.two_sided_bound(self.plan.gain(self.n, self.level), self.level)

    @cached_property
    def ready(self) -> NDArray[np.bool_]:
        """Whether the asymptotic sequence may be used."""
        met = np.ones(np.shape(self.n), bool)
        for there, _ in self.needs():
            met = met & there
        return met

    def _more(self, missing: float) -> int:
        """Units of both arms until the smaller has so many more."""
        return math.ceil(missing * float(self.n) / max(1.0, float(self.smaller)))

    def _enough_units(self) -> tuple[NDArray[np.bool_], Callable[[], NoInterval]]:
        bounded = math.isfinite(sum(self.metric.range))
        least = self.plan.burn_in_units if bounded else self.plan.unbounded_units

        def waiting() -> NoInterval:
            have = int(self.smaller)
            why = "" if bounded else f", since nothing caps {self.metric.name} (with a cap few are enough)"
            return NoInterval(
                "too-few-units",
                f"{have:,} units with {self.metric.name} in the smaller arm, {least:,} are needed{why}",
                self._more(least - have),
            )

        return np.asarray(self.smaller >= least), waiting

    def _enough_volume(self) -> tuple[NDArray[np.bool_], Callable[[], NoInterval]]:
        arms, least = (self.control, self.treatment), self.plan.volume
        worth = np.minimum(*(np.asarray(arm.sums[1] ** 2 / arm.product(1, 1)) for arm in arms))

        def waiting() -> NoInterval:
            have = int(worth)
            text = f"the denominator of {self.metric.name} is that of {have:,} equal units in an arm, "
            return NoInterval("too-few-units", text + f"{least:g} are needed", self._more(least - have))

        return np.asarray(worth >= least), waiting

    def _enough_events(self) -> tuple[NDArray[np.bool_], Callable[[], NoInterval]]:
        ones = self.control.sums[0] + self.treatment.sums[0]
        rarer = np.minimum(ones, self.n - ones)
        least = np.maximum(self.plan.burn_in_events, self.plan.arm_events * self.n / self.smaller)

        def waiting() -> NoInterval:
            have, need = int(rarer), math.ceil(float(least))
            value = 1 if float(ones) * 2 <= float(self.n) else 0
            units = math.ceil((need - have) * float(self.n) / have) if have else None
            text = f"{self.metric.name} is {value} for {have:,} units of both arms, {need:,} are needed"
            return NoInterval("too-few-events", text, units)

        return np.asarray(rarer >= least), waiting

    def _varies(self) -> tuple[NDArray[np.bool_], Callable[[], NoInterval]]:
        first, second = self.estimates

        def waiting() -> NoInterval:
            text = f"{self.metric.name} has had the same value for every unit: nothing can be shown by it"
            return NoInterval("constant", text, None)

        return np.asarray(np.maximum(first.spread, second.spread) > 0), waiting

    def _no_tail(self) -> tuple[NDArray[np.bool_], Callable[[], NoInterval]]:
        skew, need = np.asarray(self.skew_squared(), np.float64), self.tail_needed()
        with np.errstate(invalid="ignore"):
            met = np.asarray(skew * need <= 1)

        def waiting() -> NoInterval:
            if not np.isfinite(float(skew)):
                return NoInterval("tail", f"the shape of {self.metric.name} is not known", None)
            made, needed = 1 / float(skew), float(need)
            text = (
                f"about {made:.1f} units make up the difference in {self.metric.name}, {needed:.0f} are "
                f"needed: a heavy tail; {self._way_out()}"
            )
            more = math.ceil(float(self.n) * (needed / made - 1))
            return NoInterval("tail", text, more if needed == self.plan.tail else None)

        return met, waiting

    def _way_out(self) -> str:
        """What to do about a tail that more units hardly help against."""
        if math.isfinite(sum(self.metric.range)):
            return "a lower cap helps"
        if self.metric.kind.rules.uncappable:
            return "a mean with a cap helps"
        n, total, squares = (
            float(x + y)
            for x, y in (
                (self.control.n, self.treatment.n),
                (self.control.sums[0], self.treatment.sums[0]),
                (self.control.product(0, 0), self.treatment.product(0, 0)),
            )
        )
        mean = total / n
        cap = mean + CAP_DEVIATIONS * math.sqrt(max(squares / n - mean * mean, 0.0))
        return (
            f"set a cap in a new phase, at the 99th percentile of your own values or near {cap:.3g} "
            f"(mean and {CAP_DEVIATIONS} standard deviations)"
        )

    def evidence(self, line: Line = EQUAL, side: int = 0) -> Array:
        """Log evidence against a line; reaching log(1/alpha) at any look is an error of chance at most alpha.

        `side` 1 or -1: that treatment lies above, or below it; 0: that it does not lie on it. Where there is
        an exact sequence it counts, too, at any look: both have their part of alpha.
        """
        gain = self.plan.gain(self.n, min(self.level * (2 if side else 1), 0.5))
        z, ready = self.z(line), self.ready
        found = sequences.one_sided(side * z, gain) if side else sequences.two_sided(z, gain)
        if not self.has_exact:
            return np.where(ready, found, 0.0)
        low, high = self.metric.range
        against = self.rates.against(line.scale, (line.scale * low + line.offset - low) / (high - low))
        if self.counted:
            ready = self._ready_against(against)
        exact, share = self.rates.exact(against), self.plan.exact_share
        if side:
            exact = np.where(side * z > 0, exact, 0.0)
        return np.maximum(exact + math.log(share), np.where(ready, found + math.log(1 - share), -np.inf))

    def _ready_against(self, line: sequences.LineFit) -> NDArray[np.bool_]:
        """Whether two rates may be held against a line by the asymptotic sequence.

        They need events, those that there were or those that the line expects: where it says that one arm has
        5 % more, none may have come yet.
        """
        arms = (self.control, self.treatment)
        rarer = [np.minimum(rate, 1 - rate) for rate in (line.control, line.treatment)]
        expected = [arm.n * rare for arm, rare in zip(arms, rarer, strict=True)]
        each = [(e >= self.plan.arm_events) | (r == 0) for e, r in zip(expected, rarer, strict=True)]
        due = (expected[0] + expected[1] >= self.plan.burn_in_events) & each[0] & each[1]
        return np.asarray(self._enough_units()[0] & (self._enough_events()[0] | due))

    def bounds(self) -> tuple[Array, Array]:
        """Ends of the interval of the difference; infinite where there is none yet."""
        value = np.asarray(self.difference(), np.float64)
        if self.counted:
            low, high = sequences.outermost(self._beyond_offset, value, sequences.both_ends(value))
            return low, high
        half = np.where(self.ready, self.bound * np.sqrt(self.variance()), np.inf)
        if not self.has_exact:
            return value - half, value + half
        least, most = self.metric.range
        ends = sequences.difference_bounds(*self.counts, self.plan.alpha * self.plan.exact_share)
        exact = [end * (most - least) for end in ends]
        return np.maximum(value - half, exact[0]), np.minimum(value + half, exact[1])

    def _beyond_offset(self, offset: Array) -> Array:
        return self._beyond(self.rates.against(1.0, offset))

    def _beyond(self, line: sequences.LineFit) -> Array:
        """Evidence of two rates against a line, less what rules it out: negative inside the interval."""
        apart = np.where(self._ready_against(line), np.sqrt(2 * line.lost) - self.bound, -1.0)
        return np.maximum(self.rates.exact(line) + math.log(self.plan.alpha * self.plan.exact_share), apart)

    def relative_bounds(self) -> tuple[Array, Array]:
        """Ends of the interval of the difference as a share of control's value; infinite where control may be
        0, and where the asymptotic sequence is not ready."""
        low, high = self._relative_rates() if self.counted else self._relative_values()
        known = self.ready & np.isfinite(high)
        return np.where(known, low, -np.inf), np.where(known, high, np.inf)

    def _relative_rates(self) -> tuple[Array, Array]:
        first, second = self.rates.rates

        def beyond(log_scale: Array) -> Array:
            return self._beyond(self.rates.against(np.exp(log_scale)))

        there = (first > 0) & (beyond(np.full(np.shape(first), FAR)) > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(there, np.log(np.maximum(second / first, 1e-9)), 0.0)
        low, high = np.expm1(sequences.outermost(beyond, inside, FAR * sequences.both_ends(inside)))
        return low, np.where(there, high, np.inf)

    def _relative_values(self) -> tuple[Array, Array]:
        """All r for which treatment = (1 + r) control is not ruled out (Fieller 1954), by either variance."""
        c, t = (np.asarray(e.value, np.float64) for e in self.estimates)
        lows, highs = [], []
        for v, w in self.variances:
            a = c * c - self.bound**2 * v
            root = np.sqrt(np.maximum(0.0, (c * t) ** 2 - a * (t * t - self.bound**2 * w)))
            with np.errstate(divide="ignore", invalid="ignore"):
                lows.append(np.where(a > 0, (c * t - root) / a - 1, -np.inf))
                highs.append(np.where(a > 0, (c * t + root) / a - 1, np.inf))
        return np.minimum(*lows), np.maximum(*highs)


def compare(
    metric: ComparedMetric, control: Moments, treatment: Moments, plan: SequencePlan, line: Line = EQUAL
) -> ArmComparison:
    """The comparison at this look. Raises InvalidRequest if the sums cannot be of this metric."""
    return compared(ArmPair(metric, control, treatment, plan), line)


def compared(arms: ArmPair, line: Line = EQUAL) -> ArmComparison:
    """The same of arms that are compared further."""
    metric, control, treatment = arms.metric, arms.control, arms.treatment
    first, second = arms.estimates
    interval = ConfidenceInterval(*(float(end) for end in arms.bounds()))
    waiting = next((say() for met, say in arms.needs() if not bool(met)), None)
    method = Method.ASYMPTOTIC
    if waiting is not None:
        method = Method.EXACT if arms.has_exact else Method.BURN_IN
    relative = ConfidenceInterval(*(float(end) for end in arms.relative_bounds()))
    base, effect = float(first.value), float(arms.difference())
    return ArmComparison(
        metric.name,
        (int(control.n), int(treatment.n)),
        (base, float(second.value)),
        effect,
        interval,
        effect / base if base else None,
        relative if math.isfinite(relative.high) else None,
        p_of(arms.evidence(line)),
        method,
        waiting,
    )


def p_of(evidence: ArrayLike) -> float:
    """The p-value of log evidence."""
    return math.exp(-max(0.0, float(np.asarray(evidence))))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Several arms against one control, no matter how arms depend: Holm 1979 (jstor.org/stable/4615733).

    Adjusted p-values: the chance of any false finding among all arms stays below the level compared to.
    Always-valid p-values stay always valid.
    """
    if bad := [name for name, p in p_values.items() if not 0 <= p <= 1]:
        raise invalid(f"p_values[{bad[0]}]", "must be within 0 and 1")
    adjusted, least, left = {}, 0.0, len(p_values)
    for name, p in sorted(p_values.items(), key=lambda item: item[1]):
        least = max(least, min(1.0, left * p))
        adjusted[name] = least
        left -= 1
    return {name: adjusted[name] for name in p_values}
