"""Simulated experiments, many at once: every look at every outcome, through the code that serves reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.experiments.stats import Kind, Metric, Moments, Plan
from router.experiments.stats.compare import log_evidence

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], tuple[Array, ...]]  # columns of units
CHUNK = 100  # experiments at a time


@dataclass(frozen=True)
class Source:
    """A metric and how units' columns are drawn in each arm; `variance` is of one unit's value."""

    name: str
    metric: Metric
    control: Draw
    treatment: Draw
    effect: float
    variances: tuple[float, float]


def proportion(p: float, effect: float = 0.0) -> Source:
    """Zeros and ones."""

    def arm(rate: float) -> Draw:
        return lambda rng, shape: ((rng.random(shape) < rate).astype(np.float64),)

    q = p + effect
    metric = Metric("proportion", Kind.PROPORTION)
    return Source(f"proportion {p:g}", metric, arm(p), arm(q), effect, (p * (1 - p), q * (1 - q)))


def skewed(effect: float = 0.0, sigma: float = 1.0) -> Source:
    """Log-normal with mean 1: skewness 6.2 at sigma 1. The effect scales the values."""

    def arm(mean: float) -> Draw:
        return lambda rng, shape: (mean * rng.lognormal(-sigma * sigma / 2, sigma, shape),)

    variance = np.exp(sigma * sigma) - 1
    metric = Metric("mean", Kind.MEAN)
    both = (variance, variance * (1 + effect) ** 2)
    return Source(f"log-normal mean, sigma {sigma:g}", metric, arm(1), arm(1 + effect), effect, both)


def ratio(effect: float = 0.0, requests: float = 3.0) -> Source:
    """Successes per request: 1 + Poisson requests a unit, whose rate of success is Beta(4, 4) distributed."""

    def arm(shift: float) -> Draw:
        def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, ...]:
            asked = 1 + rng.poisson(requests, shape)
            rate = rng.beta(4 * (1 + 2 * shift), 4 * (1 - 2 * shift), shape)
            return rng.binomial(asked, rate).astype(np.float64), asked.astype(np.float64)

        return draw

    def variance(shift: float) -> float:
        p = 0.5 + shift
        spread = p * (1 - p)
        count, square = 1 + requests, requests + (1 + requests) ** 2
        # of the sum of (y - p d) over a unit's d requests, which correlate by 1/9
        return (count * spread * 8 / 9 + square * spread / 9) / count**2

    return Source(
        "ratio", Metric("ratio", Kind.RATIO), arm(0), arm(effect), effect, (variance(0), variance(effect))
    )


def looks(source: Source, rng: np.random.Generator, experiments: int, units: int) -> Iterator[Moments]:
    """Control's and treatment's sums [experiments, 2 * units - 1] after every outcome but the first.

    Both arms get `units` units, in random order; a look at an arm without units is left to the caller.
    """
    shape = (experiments, 2 * units)
    second = rng.permuted(np.tile(np.arange(2 * units) % 2 == 1, (experiments, 1)), axis=1)
    drawn = zip(source.control(rng, shape), source.treatment(rng, shape), strict=True)
    columns = [np.where(second, b, a) for a, b in drawn]
    for member in (~second, second):
        own = [column * member for column in columns]
        pairs = [(i, j) for i in range(len(own)) for j in range(i, len(own))]
        yield Moments(
            member.cumsum(axis=1, dtype=np.float64),
            tuple(x.cumsum(axis=1) for x in own),
            tuple((own[i] * own[j]).cumsum(axis=1) for i, j in pairs),
        )


def evidence(
    source: Source, plans: Sequence[Plan], experiments: int, units: int, seed: int
) -> Iterator[list[Array]]:
    """Log evidence against equality at every look by each plan, [chunk, looks], until all are done."""
    rng = np.random.default_rng(seed)
    for begin in range(0, experiments, CHUNK):
        control, treatment = looks(source, rng, min(CHUNK, experiments - begin), units)
        from_here = int(np.argmax((np.minimum(control.n, treatment.n) >= 2).all(axis=0)))
        late = [_from(moments, from_here) for moments in (control, treatment)]
        yield [np.asarray(log_evidence(source.metric, late[0], late[1], plan)) for plan in plans]


def _from(moments: Moments, look: int) -> Moments:
    def cut(x: object) -> Array:
        return np.asarray(x, np.float64)[:, look:]

    return Moments(cut(moments.n), tuple(map(cut, moments.sums)), tuple(map(cut, moments.products)))


def false_positives(
    source: Source, plans: Sequence[Plan], experiments: int, units: int, seed: int
) -> list[float]:
    """Share of experiments whose evidence reaches 1/alpha at any look, by each plan."""
    found = units_to_verdict(source, plans, experiments, units, seed)
    return [float(np.isfinite(one).mean()) for one in found]


def units_to_verdict(
    source: Source, plans: Sequence[Plan], experiments: int, units: int, seed: int
) -> list[Array]:
    """Units of both arms at which the evidence first reaches 1/alpha, by each plan; else infinite."""
    found: list[list[Array]] = [[] for _ in plans]
    for chunk in evidence(source, plans, experiments, units, seed):
        for plan, values, firsts in zip(plans, chunk, found, strict=True):
            reached = values >= -np.log(plan.alpha)
            first = reached.argmax(axis=1) + 1.0 + 2 * units - values.shape[1]
            firsts.append(np.where(reached.any(axis=1), first, np.inf))
    return [np.concatenate(firsts) for firsts in found]
