"""Evidence until a planned size, along the looks of one experiment: continuous O'Brien-Fleming.

`sequences.planned_bound` holds for looks until the planned size. A look can also pass it, since units are
counted by stretches of time. At the first look that does, what is left of alpha is spent: its bound follows
from the chance that Brownian motion stayed below the bound so far and is above at that look (the reflection
principle, integrated over where it stood). Later looks show nothing new, so a difference that was shown
stays shown, and one that was not is not looked for again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.experiments.stats import sequences
from router.experiments.stats.compare import ArmPair, SequencePlan, p_of
from router.experiments.stats.moments import Array, ComparedMetric, Moments, Real
from router.experiments.stats.sequences import EQUAL, Line, LineFit

_POINTS, _REACH, _HALVINGS = 400, 9.0, 50
_NORMAL = NormalDist()


def looks_bound(parts: ArrayLike, alpha: float) -> Array:
    """The |z| at which a difference is shown at each look, [..., looks] from the parts of the planned units
    that are there; infinite at looks behind the first one past the plan."""
    parts = np.asarray(parts, np.float64)
    bound = sequences.planned_bound(parts, alpha)
    for at, before in _passing(parts):
        bound[at] = _late_bound(before, float(parts[at]), alpha)
    return bound


def looks_evidence(z: ArrayLike, parts: ArrayLike) -> Array:
    """Log evidence at each look, [..., looks]: `looks_bound` is where it reaches 1/alpha."""
    z, parts = np.asarray(z, np.float64), np.asarray(parts, np.float64)
    found = sequences.planned_evidence(z, parts)
    for at, before in _passing(parts):
        found[at] = _late_evidence(before, float(parts[at]), abs(float(z[at])))
    return found


def _passing(parts: Array) -> list[tuple[tuple[int, ...], float]]:
    """Where the first look past the plan is, and the part at the look before it (0: there was none)."""
    past = parts > 1
    first = past & (np.cumsum(past, axis=-1) == 1)
    places = [tuple(int(i) for i in place) for place in np.argwhere(first)]
    return [(place, float(parts[*place[:-1], place[-1] - 1]) if place[-1] else 0.0) for place in places]


def _stayed_and_above(level: float, before: float, part: float, edge: float) -> float:
    """The chance that Brownian motion is below `level` until `before`, and above `edge` at `part`."""
    if before <= 0:
        return 1 - _NORMAL.cdf(edge / math.sqrt(part))
    root = math.sqrt(before)
    width = (level + _REACH * root) / _POINTS
    x = level - width * (np.arange(_POINTS) + 0.5)
    density = np.exp(-(x**2) / (2 * before)) - np.exp(-((2 * level - x) ** 2) / (2 * before))
    above = np.exp(sequences.log_normal_cdf((x - edge) / math.sqrt(part - before)))
    return float((density * above).sum()) * width / (root * math.sqrt(2 * math.pi))


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
    lower too often (4.5 % for 2.5 %). There is no exact sequence beside it. `limits` are the bounds of the
    looks where these are not all that there were.
    """

    limits: Array | None = None

    @property
    def has_exact(self) -> bool:
        """None here."""
        return False

    @cached_property
    def parts(self) -> Array:
        """Of the planned units, those that are there."""
        return np.asarray(self.n / self.plan.units, np.float64)

    @cached_property
    def bound(self) -> Array:
        """The |z| from which on a line is ruled out, at each look."""
        return looks_bound(self.parts, self.plan.alpha) if self.limits is None else self.limits

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
        return looks_evidence(np.where(there, z, 0.0), self.parts)

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


Looks = tuple[Moments, Moments]
"""Control's and an arm's sums at each look, [looks], in the order of time."""


@dataclass(frozen=True, slots=True)
class PlannedFinding:
    """What is shown of a line by any look until the planned size, for the side that is asked about.

    `p` is the smallest of any look; `edge` and `relative_edge` are the ends on the other side of the
    intervals at that look (infinite where there is none), so that they agree with it. `z` (positive on the
    side) and `part` of the planned units are those of the last look; `ready` tells whether it could show
    anything.
    """

    p: float
    edge: float
    relative_edge: float
    z: float
    part: float
    ready: bool

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
    shown, ready = arms.at(most), bool(arms.ready[-1])
    return PlannedFinding(
        p=p_of(found[most]),
        edge=float(shown.bounds()[end][0]),
        relative_edge=float(shown.relative_bounds()[end][0]),
        z=float(arms.z(line)[-1]) * side if ready else 0.0,
        part=float(arms.parts[-1]),
        ready=ready,
    )


def edges_by_plan(
    metric: ComparedMetric, looks: Looks, plan: SequencePlan, line: Line, side: int
) -> tuple[Array, Array]:
    """`edge` and `relative_edge` as they were known at each look, [looks]."""
    arms, count = _until_planned(metric, looks, plan), np.size(looks[0].n)
    found, end = arms.evidence(line, side), 0 if side > 0 else 1
    highest = np.maximum.accumulate(found)
    most = np.maximum.accumulate(np.where(found >= highest, np.arange(len(found)), 0))
    most = np.pad(most, (0, count - len(most)), mode="edge")
    return arms.bounds()[end][most], arms.relative_bounds()[end][most]


def _until_planned(metric: ComparedMetric, looks: Looks, plan: SequencePlan) -> PlannedPair:
    """Without the looks behind the first one at which the planned size is reached."""
    units = np.asarray(looks[0].n + looks[1].n, np.float64)
    end = int(np.searchsorted(units, plan.units)) + 1
    return PlannedPair(metric, _at(looks[0], slice(0, end)), _at(looks[1], slice(0, end)), plan)


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
