"""Simulated experiments, many at once, through the code that serves reports: sources of units, and looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.compare import ArmPair, SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, Moments, places
from router.extensions.experiments.stats.sequences import EQUAL, Line

Array = NDArray[np.float64]
Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], tuple[Array, ...]]  # columns of units, each of that shape
CHUNK = 100  # experiments at a time


@dataclass(frozen=True)
class Source:
    """A metric and how units' columns are drawn in each arm; `variances` are of one unit's value."""

    name: str
    metric: ComparedMetric
    control: Draw
    treatment: Draw
    effect: float = 0.0
    variances: tuple[float, float] = (0.0, 0.0)


def alike(name: str, metric: ComparedMetric, draw: Draw) -> Source:
    """No effect at all: both arms are drawn in the same way."""
    return Source(name, metric, draw, draw)


def ones(rate: float) -> Draw:
    """Zeros and ones."""
    return lambda rng, shape: ((rng.random(shape) < rate).astype(np.float64),)


def proportion(p: float, effect: float = 0.0) -> Source:
    """A rate, and one that differs by `effect`."""
    q = p + effect
    name = f"proportion {p:g}" + (f" -> {q:g}" if effect else "")
    return Source(
        name, ComparedMetric("proportion", Kind.PROPORTION), ones(p), ones(q), effect, (p - p * p, q - q * q)
    )


def skewed(effect: float = 0.0, sigma: float = 1.0) -> Source:
    """Log-normal with mean 1: skewness 6.2 at sigma 1. The effect scales the values."""

    def arm(mean: float) -> Draw:
        return lambda rng, shape: (mean * rng.lognormal(-sigma * sigma / 2, sigma, shape),)

    variance = float(np.exp(sigma * sigma) - 1)
    both = (variance, variance * (1 + effect) ** 2)
    name = f"log-normal, sigma {sigma:g}" + (f", {effect:+.0%}" if effect else "")
    return Source(name, ComparedMetric("mean", Kind.MEAN), arm(1), arm(1 + effect), effect, both)


def ratio(effect: float = 0.0, requests: float = 3.0) -> Source:
    """Successes per request: 1 + Poisson requests a unit, whose rate of success is Beta(4, 4) distributed."""

    def arm(shift: float) -> Draw:
        def draw(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
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

    name = f"ratio{effect:+g}" if effect else "ratio"
    metric, variances = ComparedMetric("ratio", Kind.RATIO), (variance(0), variance(effect))
    return Source(name, metric, arm(0), arm(effect), effect, variances)


def revenue(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
    """2 % of units pay a log-normal amount."""
    return ((rng.random(shape) < 0.02) * rng.lognormal(3, 1, shape),)


def timeouts(rng: np.random.Generator, shape: Shape, rate: float = 0.005) -> tuple[Array, ...]:
    """Seconds around 1.2; some wait for 30 more."""
    return (np.abs(rng.normal(1.2, 0.3, shape)) + 30 * (rng.random(shape) < rate),)


def rarely_asked(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
    """A ratio whose denominator is 0 for 95 % of units."""
    asked = (rng.random(shape) < 0.05) * (1 + rng.poisson(2, shape))
    return rng.binomial(asked, 0.3).astype(np.float64), asked.astype(np.float64)


def returning(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
    """A ratio of users who come back as often as Zipf has it, each with a rate of his own around 0.02."""
    asked = np.minimum(rng.zipf(2.0, shape), 1000)
    return rng.binomial(asked, rng.beta(1, 49, shape)).astype(np.float64), asked.astype(np.float64)


def heavy_past(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
    """A mean, and a covariate with a heavy tail."""
    past = rng.lognormal(0, 2, shape)
    return 0.5 * past * rng.lognormal(-0.125, 0.5, shape) + rng.normal(0, 1, shape), past


def rare_past(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
    """A mean, and a covariate that 5 % of units have."""
    past = (rng.random(shape) < 0.05) * rng.lognormal(1, 1, shape)
    return past + rng.normal(0, 0.5, shape), past


def one_arm_times_out(rate: float = 0.005, seconds: float = 50.0, swap: bool = False) -> Source:
    """Equal means of unlike shape: only one arm has rare, long waits, and is faster otherwise."""

    def smooth(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
        return (rng.normal(1.25, 0.3, shape),)

    def broken(rng: np.random.Generator, shape: Shape) -> tuple[Array, ...]:
        return (rng.normal(1.25 - rate * seconds, 0.3, shape) + seconds * (rng.random(shape) < rate),)

    both = (broken, smooth) if swap else (smooth, broken)
    return Source(f"only {'control' if swap else 'treatment'} times out, {rate:.1%}", LATENCY, *both)


def capped(source: Source, high: float, low: float = 0.0) -> Source:
    """The same values within bounds that the plan fixed."""

    def within(draw: Draw) -> Draw:
        return lambda rng, shape: tuple(column.clip(low, high) for column in draw(rng, shape))

    metric = replace(source.metric, bounds=(low, high))
    return replace(
        source,
        name=f"{source.name}, capped at {high:g}",
        metric=metric,
        control=within(source.control),
        treatment=within(source.treatment),
    )


LATENCY = ComparedMetric("seconds", Kind.MEAN, higher_is_better=False)


def looks(
    source: Source, rng: np.random.Generator, experiments: int, units: int, share: float = 0.5, every: int = 1
) -> tuple[Moments, Moments]:
    """Control's and treatment's sums [experiments, looks] after `every` units each; every unit goes to
    treatment with a chance of `share`."""
    shape = (experiments, units // every * every)
    treated = rng.random(shape) < share
    return (
        _cumulative(source.control(rng, shape), ~treated, every),
        _cumulative(source.treatment(rng, shape), treated, every),
    )


def _cumulative(columns: Sequence[Array], member: NDArray[np.bool_], every: int) -> Moments:
    def up(values: Array) -> Array:
        runs, units = values.shape
        return (values * member).reshape(runs, units // every, every).sum(axis=2).cumsum(axis=1)

    sums = (
        tuple(up(np.prod([columns[i] for i in at], axis=0)) for at in places(len(columns), power))
        for power in (1, 2, 3)
    )
    return Moments(up(np.ones(member.shape)), *sums)


def evidence(
    metric: ComparedMetric,
    both: tuple[Moments, Moments],
    plan: SequencePlan,
    line: Line = EQUAL,
    side: int = 0,
) -> Array:
    """Log evidence [experiments, looks]; none where the arms cannot be compared yet."""
    usable = np.minimum(both[0].n, both[1].n) >= 2
    if metric.kind is Kind.RATIO:
        for arm in both:
            for column in range(1, metric.columns, 2):
                usable &= arm.sums[column] > 0
    found = np.zeros(usable.shape)
    there = tuple(_where(arm, usable) for arm in both)
    found[usable] = ArmPair(metric, there[0], there[1], plan).evidence(line, side)
    return found


def _where(arm: Moments, usable: NDArray[np.bool_]) -> Moments:
    def cut(values: Sequence[object]) -> tuple[Array, ...]:
        return tuple(np.asarray(x)[usable] for x in values)

    return Moments(np.asarray(arm.n)[usable], cut(arm.sums), cut(arm.products), cut(arm.cubes))


Judged = Callable[[tuple[Moments, Moments]], Array]  # log evidence [experiments, looks]


def first_looks(
    source: Source,
    judged: Judged,
    experiments: int,
    units: int,
    seed: int,
    share: float = 0.5,
    every: int = 1,
    alpha: float = 0.05,
) -> Array:
    """Units of both arms at the look at which each experiment is decided; else infinite."""
    rng, found = np.random.default_rng(seed), []
    for begin in range(0, experiments, CHUNK):
        both = looks(source, rng, min(CHUNK, experiments - begin), units, share, every)
        reached = judged(both) >= -np.log(alpha)
        first = (reached.argmax(axis=1) + 1.0) * every
        found.append(np.where(reached.any(axis=1), first, np.inf))
    return np.concatenate(found)


def units_to_verdict(
    source: Source,
    plan: SequencePlan,
    experiments: int,
    units: int,
    seed: int,
    share: float = 0.5,
    every: int = 1,
) -> Array:
    """Units of both arms until a difference is shown; else infinite."""
    judged = partial(evidence, source.metric, plan=plan)
    return first_looks(source, judged, experiments, units, seed, share, every, plan.alpha)


def chunks(experiments: int) -> Iterator[int]:
    """Experiments in pieces that fit in memory."""
    for begin in range(0, experiments, CHUNK):
        yield min(CHUNK, experiments - begin)
