"""Are quantiles of times judged truly, at every look?

Two arms whose times have one shape, of equal quantiles or with treatment's just at a guardrail's margin.
Units have one request or up to 50 that resemble each other; a unit counts with its slowest. Beside them a
test that holds for one look and independent requests, which is what dashboards do. Then: how many units find
a slower arm, by the quantile, by the share of slow units, and by the mean; and how wide the intervals are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.experiment_simulation import Array, Source, evidence, looks
from router.experiments.model import Kind
from router.experiments.stats.compare import SequencePlan
from router.experiments.stats.moments import ComparedMetric
from router.experiments.stats.quantiles import QuantilePair, bins_up_to, own_evidence
from router.experiments.stats.sequences import Line
from router.experiments.times import BINS

ALPHA, MARGIN = 0.05, 0.2
UNITS, LOOKS = 6_000, 60  # of both arms; looks from the first 20 units on
PLANNED = 5_000
Draw = Callable[[np.random.Generator, int], tuple[Array, NDArray[np.int64]]]  # requests, and each one's unit


def alone(values: Callable[[np.random.Generator, int], Array]) -> Draw:
    """One request a unit."""
    return lambda rng, n: (values(rng, n), np.arange(n))


def bimodal(rng: np.random.Generator, n: int) -> Array:
    """One in five takes 20 times as long: p95 lies in the upper mode, p50 in the lower."""
    return np.where(rng.random(n) < 0.2, 10.0, 0.5) * rng.lognormal(0, 0.2, n)


def ties(rng: np.random.Generator, n: int) -> Array:
    """Four values only."""
    return rng.choice([0.5, 1.0, 2.0, 8.0], n, p=[0.4, 0.3, 0.22, 0.08])


def returning(rng: np.random.Generator, n: int) -> tuple[Array, NDArray[np.int64]]:
    """1 to 50 requests a unit, half of whose variance is the unit's own."""
    unit = np.repeat(np.arange(n), np.minimum(rng.zipf(1.7, n), 50))
    return np.exp(rng.normal(0, 0.5, n)[unit] + rng.normal(0, 0.5, len(unit))), unit


SHAPES: dict[str, Draw] = {
    "exponential": alone(lambda rng, n: rng.exponential(1.0, n)),
    "log-normal 1": alone(lambda rng, n: rng.lognormal(0, 1, n)),
    "log-normal 2": alone(lambda rng, n: rng.lognormal(0, 2, n)),
    "bimodal": alone(bimodal),
    "four values": alone(ties),
    "1 to 50 requests a unit": returning,
}
SPLITS, LEVELS = (0.5, 0.05), (0.95, 0.5)


class Looked(NamedTuple):
    """One experiment: units by bin [looks, BINS] of both arms, and the largest |z| of the usual test at any
    look (0: not asked for)."""

    control: Array
    treatment: Array
    usual: float


def looked(
    draw: Draw, factor: float, share: float, rng: np.random.Generator, usual_at: float = 0.0
) -> Looked:
    """Treatment's times are `factor` as long. `usual_at`: the level of the usual test."""
    ends = np.unique(np.geomspace(20, UNITS, LOOKS).round().astype(np.int64))
    values, unit = draw(rng, UNITS)
    treated = rng.random(UNITS) < share
    values = np.where(treated[unit], factor, 1.0) * values
    first, second = (by_bin(slowest(values, unit), arm, ends) for arm in (~treated, treated))
    cut = np.searchsorted(unit, ends) if usual_at else ()
    usual = max((once(values[:at], treated[unit[:at]], usual_at) for at in cut), default=0.0)
    return Looked(first, second, usual)


def slowest(values: Array, unit: NDArray[np.int64]) -> Array:
    """Each unit's largest value; units stand together."""
    found: Array = np.maximum.reduceat(values, np.flatnonzero(np.diff(unit, prepend=-1)))
    return found


def by_bin(values: Array, member: NDArray[np.bool_], ends: NDArray[np.int64]) -> Array:
    """Units by bin among the first so many, [looks, BINS]."""
    places, start, found = bins_up_to(values) - 1, 0, []
    for end in ends:
        found.append(np.bincount(places[start:end][member[start:end]], minlength=BINS))
        start = end
    return np.cumsum(found, axis=0).astype(np.float64)


def once(values: Array, treated: NDArray[np.bool_], level: float) -> float:
    """|z| of requests above both arms' quantile, as if it were looked at once."""
    slow = values > np.quantile(values, level)
    n, m, rate = int(treated.sum()), int((~treated).sum()), float(slow.mean())
    error = math.sqrt(rate * (1 - rate) * (1 / max(n, 1) + 1 / max(m, 1)))
    if not (error and n and m):
        return 0.0
    return abs(float(slow[treated].mean()) - float(slow[~treated].mean())) / error


@cache
def truth(shape: str, level: float) -> float:
    """The quantile of units, of two million of them."""
    values, unit = SHAPES[shape](np.random.default_rng(99), 2_000_000)
    return float(np.quantile(slowest(values, unit), level, method="inverted_cdf"))


@dataclass(frozen=True, slots=True)
class Wrong:
    """Shares of experiments in which some look is wrong: the interval of the difference, that of control's
    own value, harm and `within` at the margin; and those that the usual test calls different."""

    interval: float
    own: float
    harm: float
    within: float
    usual: float

    @property
    def worst(self) -> float:
        """The largest that is promised to be at most alpha."""
        return max(self.interval, self.own, self.harm, self.within)


def wrong(shape: str, share: float, level: float, runs: int, seed: int) -> Wrong:
    """Arms alike for the intervals, and treatment at the margin for the guardrail."""
    rng, found = np.random.default_rng(seed), []
    plan = SequencePlan(units=PLANNED, share=share)
    true = int(bins_up_to(truth(shape, level)))
    for _ in range(runs):
        alike = looked(SHAPES[shape], 1.0, share, rng, level)
        pair = QuantilePair(level, alike.control, alike.treatment, plan)
        either = max(float(pair.evidence(Line(), side).max()) for side in (1, -1))
        below = pair.below[0]
        more, less = (
            own_evidence(level, below[:, [at, -1]], (1 - share) * PLANNED)[i][:, 0].max()
            for i, at in ((0, true - 1), (1, true))
        )
        edge = looked(SHAPES[shape], 1 + MARGIN, share, rng)
        margin = QuantilePair(level, edge.control, edge.treatment, plan)
        harm, within = (float(margin.evidence(Line(scale=1 + MARGIN), side).max()) for side in (1, -1))
        usual = alike.usual >= NormalDist().inv_cdf(1 - ALPHA / 2)
        both, one = math.log(2 / ALPHA), math.log(1 / ALPHA)
        found.append((either >= both, max(more, less) >= both, harm >= one, within >= one, usual))
    return Wrong(*(float(share) for share in np.mean(found, axis=0)))


def wrong_rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each shape, split and level."""
    for number, shape in enumerate(SHAPES):
        for share in SPLITS:
            for level in LEVELS:
                found = wrong(shape, share, level, runs, 10 * number)
                yield {
                    "times": shape,
                    "split": split(share),
                    "quantile": f"p{100 * level:g}",
                    "interval of the difference misses, %": f"{100 * found.interval:.1f}",
                    "of control's own, %": f"{100 * found.own:.1f}",
                    "harm at the margin, %": f"{100 * found.harm:.1f}",
                    "within at the margin, %": f"{100 * found.within:.1f}",
                    "usual test at every look, %": f"{100 * found.usual:.1f}",
                    "5 % promised": "TOO OFTEN" if too_often(found.worst, runs) else "ok",
                }


def too_often(rate: float, runs: int) -> bool:
    """Whether the 95 % interval of what was seen lies above what is promised."""
    return rate - 1.96 * math.sqrt(max(rate * (1 - rate), 1e-12) / runs) > ALPHA


def split(share: float) -> str:
    """`95/5`."""
    return f"{100 * (1 - share):g}/{100 * share:g}"


# --- power --------------------------------------------------------------------------------------------------

SLOWER = (1.5, 2.0, 10.0)
MOST, SIGMA, CAP = 40_000, 0.7, 60.0


def times(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Log-normal, around a second."""
    return rng.lognormal(0, SIGMA, shape)


LIMIT = math.exp(SIGMA * NormalDist().inv_cdf(0.95))
"""Control's own p95."""


def found_by_quantile(
    level: float, factor: float, share: float, runs: int, seed: int, side: int = 1
) -> Array:
    """Units of both arms until a guardrail of 20 % stops the arm (`side` 1), or is within (-1)."""
    rng, plan = np.random.default_rng(seed), SequencePlan(units=PLANNED, share=share)
    ends = np.unique(np.geomspace(20, MOST, 120).round().astype(np.int64))
    found = np.full(runs, np.inf)
    for run_number in range(runs):
        treated = rng.random(MOST) < share
        values = np.where(treated, factor, 1.0) * times(rng, (MOST,))
        for part in np.array_split(ends, 6):  # most are found early
            pair = QuantilePair(level, by_bin(values, ~treated, part), by_bin(values, treated, part), plan)
            shown = pair.evidence(Line(scale=1 + MARGIN), side) >= math.log(1 / ALPHA)
            if shown.any():
                found[run_number] = part[shown.argmax()]
                break
    return found


def found_by(
    metric: ComparedMetric,
    line: Line,
    count: Callable[[Array], Array],
    factor: float,
    share: float,
    runs: int,
    seed: int,
) -> Array:
    """The same by another metric."""

    def arm(longer: float) -> Callable[[np.random.Generator, tuple[int, ...]], tuple[Array, ...]]:
        return lambda rng, shape: (count(longer * times(rng, shape)),)

    source = Source(metric.name, metric, arm(1.0), arm(factor))
    rng, plan, every = np.random.default_rng(seed), SequencePlan(units=PLANNED), 20
    found = []
    for _ in range(0, runs, 20):
        both = looks(source, rng, min(20, runs), MOST, share, every)
        shown = evidence(metric, both, plan, line, 1) >= math.log(1 / ALPHA)
        found.append(np.where(shown.any(axis=1), every * (1 + shown.argmax(axis=1)), np.inf))
    return np.concatenate(found)[:runs]


def power_rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each way to look, slower arm and split."""
    slow = ComparedMetric("total_time_over", Kind.PROPORTION, higher_is_better=False)
    mean = ComparedMetric("total_time", Kind.MEAN, higher_is_better=False, bounds=(0.0, CAP))
    for share in SPLITS:
        for number, factor in enumerate(SLOWER):
            seed = 300 + number
            ways = {
                "p95, 20 %": found_by_quantile(0.95, factor, share, runs, seed),
                "p50, 20 %": found_by_quantile(0.5, factor, share, runs, seed),
                "share above control's p95, 2 points": found_by(
                    slow,
                    Line(offset=0.02),
                    lambda v: (v > LIMIT).astype(np.float64),
                    factor,
                    share,
                    runs,
                    seed,
                ),
                "mean capped at 60 s, 20 %": found_by(
                    mean, Line(scale=1 + MARGIN), lambda v: v.clip(0, CAP), factor, share, runs, seed
                ),
            }
            for name, found in ways.items():
                half, most = (np.quantile(found, q, method="inverted_cdf") for q in (0.5, 0.8))
                yield {
                    "times": f"x{factor:g}",
                    "split": split(share),
                    "guardrail": name,
                    "half stopped by": _units(half),
                    "80 % stopped by": _units(most),
                }


def _units(number: float) -> str:
    return f"{number:,.0f}" if math.isfinite(number) else f"over {MOST:,}"


def width_rows(runs: int) -> Iterator[dict[str, Any]]:
    """Intervals of arms alike, and when a guardrail is within its margin."""
    for level in LEVELS:
        within = found_by_quantile(level, 1.0, 0.5, runs, 500, -1)
        row = {"quantile": f"p{100 * level:g}"}
        for units in (1_000, 5_000, 20_000):
            found = [_width(level, units, seed) for seed in range(min(runs, 50))]
            row[f"{units:,} units"] = f"{100 * np.median(found):.0f} %"
        half, most = (np.quantile(within, q, method="inverted_cdf") for q in (0.5, 0.8))
        yield row | {"half within 20 % by": _units(half), "80 % within 20 % by": _units(most)}


def _width(level: float, units: int, seed: int) -> float:
    """Half of the relative interval."""
    rng = np.random.default_rng(700 + seed)
    arms = [
        by_bin(times(rng, (units // 2,)), np.ones(units // 2, bool), np.array([units // 2]))[0] for _ in "ab"
    ]
    found = QuantilePair(level, arms[0], arms[1], SequencePlan(units=PLANNED)).relative_interval()
    return (found.high - found.low) / 2 if found else math.inf


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether all targets are met."""
    begin = time.process_time()
    errors = list(wrong_rows(asked.runs))
    print(report.table(errors), flush=True)
    power, widths = list(power_rows(asked.power_runs)), list(width_rows(asked.power_runs))
    print(report.table(power), report.table(widths), sep="\n\n")
    missed = [
        f"{row['times']} {row['split']} {row['quantile']}" for row in errors if "TOO OFTEN" in row.values()
    ]
    stopped = next(
        r for r in power if (r["times"], r["split"], r["guardrail"]) == ("x10", "95/5", "p95, 20 %")
    )
    if (by := float(stopped["80 % stopped by"].replace(",", "").removeprefix("over "))) > MOST_UNITS:
        missed.append(f"x10 at 95/5: {by:,.0f} units")
    notes = [
        f"{UNITS:,} units of both arms, {LOOKS} looks from the 20th unit on, {PLANNED:,} planned; a unit"
        " counts with its slowest request",
        f"harm and within: treatment's times are {100 * MARGIN:g} % longer, which is just the margin",
        "usual test: requests above the quantile of both arms, two-sided at 5 %, as if all were independent"
        " and this were the only look",
        "TOO OFTEN: the 95 % interval of a cell lies above 5 %",
        f"power: log-normal times, sigma {SIGMA:g}, one request a unit, {asked.power_runs} experiments a row",
        "widths: half of the interval of the relative difference, arms alike, median",
        f"ten-fold times at 95/5 within {MOST_UNITS} units by p95, or missed",
        f"missed: {', '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section quantiles`: {asked.runs:,} simulated experiments a"
        f" cell, alpha {ALPHA:g}."
    )
    if not asked.dry:
        tables = {"Units until a slower arm is stopped": power, "How wide the intervals are": widths}
        print("written to", report.write("experiment-quantiles", workload, errors, notes, tables=tables))
    return not missed


MOST_UNITS = 300
"""Units of both arms within which ten-fold times are to be stopped."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=500, help="experiments a cell")
    parser.add_argument("--power-runs", type=int, default=100, help="experiments a row with an effect")
