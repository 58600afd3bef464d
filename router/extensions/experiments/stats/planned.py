"""Evidence until a planned size, along the looks of one experiment: continuous O'Brien-Fleming.

Two clocks run. Units come, with or without a value; their number is planned, and so it ends the experiment.
What is known is in values. How many of those the planned units will have is read once, at the first look with
a fifth of these units: that many, and a tenth more, are the whole of the information. The bound is that of
`sequences.planned_bound` at the part of it that is there. Which units have a value says nothing of the
difference between arms that are alike, so this choice adds no error.

The first look at which the planned units are there spends what is left of alpha: its bound follows from the
chance that Brownian motion stayed below the bound so far and is above at that look (the reflection principle,
integrated over where it stood). It does so whatever part of the information there is by then. A look before
it that has a larger part of the information than of the units is left out, so that alpha is left for the
last. Later looks show nothing new, so a difference that was shown stays shown, and one that was not is not
looked for again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.extensions.experiments.stats import sequences
from router.extensions.experiments.stats.compare import ArmPair, SequencePlan, p_of
from router.extensions.experiments.stats.moments import Array, ComparedMetric, Moments, Real
from router.extensions.experiments.stats.sequences import EQUAL, Line, LineFit

START, SPARE = 0.2, 1.1
"""The part of the planned units at which the information is projected, and how much more is expected. Before
that look alpha would be spent by less than a millionth."""
_POINTS, _REACH, _HALVINGS, _ROUNDING = 400, 9.0, 50, 1e-9
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Clock:
    """The part of the information at each look, [..., looks]; infinite where a look does not count. `last`
    are the looks at which the planned units are there for the first time."""

    parts: Array
    last: NDArray[np.bool_]

    @staticmethod
    def of(values: Real, units: Real, planned: int) -> Clock:
        """By the units that have a value, [..., looks], and by all of them."""
        values = np.asarray(values, np.float64)
        share = np.broadcast_to(np.asarray(units, np.float64) / planned, values.shape)
        begun, over = share >= START, share >= 1
        first = begun & (np.cumsum(begun, axis=-1) == 1)
        last = over & (np.cumsum(over, axis=-1) == 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            projected = np.where(first, values / share, 0.0).sum(axis=-1, keepdims=True)
            parts = values / np.minimum(SPARE * projected, planned)
        counts = last | (begun & ~over & (parts <= share + _ROUNDING))
        return Clock(np.where(counts, parts, np.inf), last)

    def late(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """Where the last looks are, and the part at the look before that counts (0: there was none)."""
        for place in np.argwhere(self.last):
            *row, look = (int(i) for i in place)
            before = self.parts[tuple(row)][:look]
            yield (*row, look), float(max(before[np.isfinite(before)], default=0.0))


def looks_bound(clock: Clock, alpha: float) -> Array:
    """The |z| at which a difference is shown at each look; infinite at looks that do not count."""
    bound = sequences.planned_bound(np.where(clock.last, np.inf, clock.parts), alpha)
    for at, before in clock.late():
        bound[at] = _late_bound(before, float(clock.parts[at]), alpha)
    return bound


def looks_evidence(z: ArrayLike, clock: Clock) -> Array:
    """Log evidence at each look, [..., looks]: `looks_bound` is where it reaches 1/alpha."""
    z = np.asarray(z, np.float64)
    found = sequences.planned_evidence(z, np.where(clock.last, np.inf, clock.parts))
    for at, before in clock.late():
        found[at] = _late_evidence(before, float(clock.parts[at]), abs(float(z[at])))
    return found


def _stayed_and_above(level: float, before: float, part: float, edge: float) -> float:
    """The chance that Brownian motion is below `level` until `before`, and above `edge` at `part`."""
    if before <= 0:
        return 1 - _NORMAL.cdf(edge / math.sqrt(part))
    root = math.sqrt(before)
    width = (level + _REACH * root) / _POINTS
    x = level - width * (np.arange(_POINTS) + 0.5)
    density = np.exp(-(x**2) / (2 * before)) - np.exp(-((2 * level - x) ** 2) / (2 * before))
    points, chances = _normal_cdf()
    above = np.interp((x - edge) / math.sqrt(max(part - before, _ROUNDING)), points, chances)
    return float((density * above).sum()) * width / (root * math.sqrt(2 * math.pi))


@cache
def _normal_cdf() -> tuple[Array, Array]:
    """The distribution function of the normal at points that are near enough to interpolate (to 1e-7)."""
    points = np.linspace(-_REACH, _REACH, 18_001)
    return points, np.exp(sequences.log_normal_cdf(points))


def _left(level: float, before: float) -> float:
    """Of the chance of an error on one side that belongs to `level`, what was not spent until `before`."""
    spent = 2 * _NORMAL.cdf(-level / math.sqrt(before)) if before > 0 else 0.0
    return 2 * _NORMAL.cdf(-level) - spent


@lru_cache(maxsize=1024)
def _late_bound(before: float, part: float, alpha: float) -> float:
    level = _NORMAL.inv_cdf(1 - alpha / 4)
    low, high = 0.0, level + _REACH * math.sqrt(part)
    for _ in range(_HALVINGS):
        edge = (low + high) / 2
        enough = _stayed_and_above(level, before, part, edge) <= _left(level, before)
        low, high = (low, edge) if enough else (edge, high)
    return high / math.sqrt(part)


def _late_evidence(before: float, part: float, z: float) -> float:
    """By the largest level whose bound is not above z."""
    low, high = 0.0, 8.0
    for _ in range(_HALVINGS):
        level = (low + high) / 2
        shown = _stayed_and_above(level, before, part, z * math.sqrt(part)) <= _left(level, before)
        low, high = (level, high) if shown else (low, level)
    return max(0.0, -math.log(4) - float(sequences.log_normal_cdf(-low)))


@dataclass(frozen=True)
class PlannedPair(ArmPair):
    """Two arms at the looks of one experiment, [..., looks], judged until the planned size.

    Its z is for bounds near 2, not 3. Of two rates it is the likelihood ratio or the score (Farrington and
    Manning 1990), whichever shows less: with some five events in the smaller arm the first alone calls it
    lower too often (4.5 % for 2.5 %). There is no exact sequence beside it. `units` are those of both arms,
    with or without a value; None: all have one. `limits` are the bounds of the looks where these are not all
    that there were.
    """

    units: Array | None = None
    limits: Array | None = None

    @property
    def has_exact(self) -> bool:
        """None here."""
        return False

    @cached_property
    def clock(self) -> Clock:
        """How far each look is."""
        return Clock.of(self.n, self.n if self.units is None else self.units, self.plan.units)

    @cached_property
    def bound(self) -> Array:
        """The |z| from which on a line is ruled out, at each look."""
        return looks_bound(self.clock, self.plan.alpha) if self.limits is None else self.limits

    def at(self, look: int) -> PlannedPair:
        """One of the looks."""
        here = slice(look, look + 1)
        control, treatment = _at(self.control, here), _at(self.treatment, here)
        return replace(self, control=control, treatment=treatment, limits=self.bound[here])

    def z(self, line: Line = EQUAL) -> Array:
        """The difference from a line in standard errors."""
        return self._z_of(self.rates.against(line.scale, line.offset)) if self.counted else super().z(line)

    def evidence(self, line: Line = EQUAL, side: int = 0) -> Array:
        """Log evidence against a line at each look. `side` 1 or -1: that treatment lies above, or below it,
        at half the chance of an error."""
        ready = self.ready
        if self.counted:
            ready = self._ready_against(self.rates.against(line.scale, line.offset))
        z = self.z(line)
        there = ready & (side * z > 0) if side else ready
        return looks_evidence(np.where(there, z, 0.0), self.clock)

    def _z_of(self, line: LineFit) -> Array:
        z = self.rates.deviance(line)
        p, q = line.control, line.treatment
        first, second = self.rates.rates
        variance = line.scale**2 * p * (1 - p) / self.control.n + q * (1 - q) / self.treatment.n
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.abs(second - q - line.scale * (first - p)) / np.sqrt(variance)
        return np.where(variance > 0, np.copysign(np.minimum(np.abs(z), score), z), z)

    def _beyond(self, line: LineFit) -> Array:
        """The |z| of a line, less what rules it out: negative inside the interval."""
        ready: NDArray[np.bool_] = self._ready_against(line)
        finite = np.isfinite(self.bound)
        return np.where(ready & finite, np.abs(self._z_of(line)) - np.where(finite, self.bound, 0.0), -1.0)


class Looks(NamedTuple):
    """Control's and an arm's sums at each look, [looks], in the order of time, and the units of both that the
    sums are of, with or without a value."""

    control: Moments
    treatment: Moments
    exposed: tuple[Array, Array]

    @property
    def units(self) -> Array:
        """Of both arms."""
        return self.exposed[0] + self.exposed[1]


@dataclass(frozen=True, slots=True)
class PlannedFinding:
    """What is shown of a line by any look until the planned size, for the side that is asked about.

    `p` is the smallest of any look; `edge` and `relative_edge` are the ends on the other side of the
    intervals at that look (infinite where there is none), so that they agree with it. `part` of the planned
    units are there at the last look.
    """

    p: float
    edge: float
    relative_edge: float
    part: float

    @property
    def reached(self) -> bool:
        """Whether the planned size is reached."""
        return self.part >= 1


def found_by_plan(
    metric: ComparedMetric, looks: Looks, plan: SequencePlan, line: Line, side: int
) -> PlannedFinding:
    """What the looks show: whether treatment lies above a line (`side` 1) or below it (-1)."""
    arms = _until_planned(metric, looks, plan)
    found = arms.evidence(line, side)
    most, end = int(np.flatnonzero(found == found.max())[-1]), 0 if side > 0 else 1
    shown = arms.at(most)
    return PlannedFinding(
        p=p_of(found[most]),
        edge=float(shown.bounds()[end][0]),
        relative_edge=float(shown.relative_bounds()[end][0]),
        part=float(looks.units[min(len(looks.units), len(found)) - 1]) / plan.units,
    )


def _until_planned(metric: ComparedMetric, looks: Looks, plan: SequencePlan) -> PlannedPair:
    """Without the looks behind the first one at which the planned units are there."""
    here = slice(0, int(np.searchsorted(looks.units, plan.units)) + 1)
    control, treatment = _at(looks.control, here), _at(looks.treatment, here)
    return PlannedPair(metric, control, treatment, plan, looks.units[here])


def better_end(side: int, always: tuple[Real, Real], edge: Real, value: Real) -> tuple[Array, Array]:
    """The always-valid interval with a narrower end on the other side than `side`: at `edge`, which does not
    leave out `value`."""
    if side > 0:
        return np.maximum(always[0], np.minimum(edge, value)), np.asarray(always[1], np.float64)
    return np.asarray(always[0], np.float64), np.minimum(always[1], np.maximum(edge, value))


def _at(sums: Moments, here: slice) -> Moments:
    """Some of the looks."""

    def cut(values: Sequence[Real]) -> tuple[Array, ...]:
        return tuple(np.asarray(value)[here] for value in values)

    return Moments(np.asarray(sums.n)[here], cut(sums.sums), cut(sums.products), cut(sums.cubes))
