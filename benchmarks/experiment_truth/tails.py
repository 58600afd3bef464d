"""Are means with unlike tails, and times, judged truly?

Two arms have the same mean and another shape. Without a cap the largest values of one arm have not come yet
when the first verdict might fall, so its mean seems lower than it is. Half of the pairs of shapes, `SEEN`,
were there when the condition `SequencePlan.heavy` was chosen; the other half, `UNSEEN`, with its own splits,
was simulated afterwards.

Harm to times: one arm takes ten times as long. How many units does it take until a guardrail stops it?
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.experiment_simulation import LATENCY, Array, Source, alike, chunks, first_looks, looks
from router.experiments.model import Kind
from router.experiments.stats.compare import ArmPair, SequencePlan
from router.experiments.stats.moments import ComparedMetric, Moments
from router.experiments.stats.sequences import Line, planned_bound, two_sided_bound

ALPHA = 0.05
UNITS, EVERY = 40_000, 200  # of both arms
PLANNED = 20_000
FORMER = SequencePlan(heavy=math.inf)
"""Without the condition that a heavy tail makes."""
Values = Callable[[np.random.Generator, tuple[int, ...]], Array]
MEAN = ComparedMetric("value", Kind.MEAN)


def log_normal(sigma: float) -> Values:
    """Skewness 0.9 at sigma 0.28, 6.2 at 1, 33 at 1.5, 414 at 2."""
    return lambda rng, shape: rng.lognormal(-sigma * sigma / 2, sigma, shape)


def pareto(index: float) -> Values:
    """A power of a value is its tail: no third moment below an index of 3."""
    return lambda rng, shape: (rng.pareto(index, shape) + 1) * (index - 1) / index


def weibull(form: float) -> Values:
    """Stretched exponential."""
    return lambda rng, shape: rng.weibull(form, shape) / math.gamma(1 + 1 / form)


def exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Skewness 2."""
    return rng.exponential(1, shape)


def payers(share: float) -> Values:
    """Zero for most, log-normal for some."""
    return lambda rng, shape: (rng.random(shape) < share) * rng.lognormal(-0.5, 1, shape) / share


def waits(rate: float, seconds: float) -> Values:
    """Even values, and rare long ones."""

    def drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return np.abs(rng.normal(1 - rate * seconds, 0.1, shape)) + seconds * (rng.random(shape) < rate)

    return drawn


SHAPES: dict[str, Values] = {
    **{f"log-normal {sigma:g}": log_normal(sigma) for sigma in (0.28, 0.5, 1, 1.5, 2, 2.5)},
    **{f"Pareto {index:g}": pareto(index) for index in (2.5, 3.5)},
    **{f"Weibull {form:g}": weibull(form) for form in (0.3, 0.5)},
    "exponential": exponential,
    "5 % pay": payers(0.05),
    "20 % pay": payers(0.2),
    "1 % wait 30": waits(0.01, 30),
    "0.2 % wait 100": waits(0.002, 100),
}
SEEN = (
    *(("log-normal 0.28", "log-normal 2"), ("log-normal 0.28", "log-normal 1.5")),
    *(("log-normal 0.28", "log-normal 1"), ("log-normal 1", "log-normal 2")),
    ("log-normal 1", "log-normal 1.5"),
    *(("exponential", "log-normal 0.28"), ("1 % wait 30", "log-normal 0.28")),
    *(("Pareto 2.5", "log-normal 0.28"), ("5 % pay", "log-normal 0.28"), ("Weibull 0.3", "log-normal 0.5")),
)
UNSEEN = (
    *(("log-normal 0.5", "log-normal 2.5"), ("log-normal 2.5", "log-normal 1")),
    *(("Weibull 0.3", "log-normal 1"), ("log-normal 1.5", "exponential")),
    ("log-normal 0.5", "Pareto 2.5"),
    *(("Pareto 3.5", "log-normal 0.5"), ("Weibull 0.5", "exponential"), ("Weibull 0.5", "log-normal 2")),
    *(("20 % pay", "log-normal 1.5"), ("0.2 % wait 100", "log-normal 0.5")),
)
SPLITS = {"seen": (0.5, 0.1, 0.9), "unseen": (0.5, 0.2, 0.8, 0.05)}
WELL_BEHAVED = ("log-normal 0.28", "log-normal 0.5", "log-normal 1", "exponential", "Weibull 0.5")


def unlike(control: str, treatment: str) -> Source:
    """The same mean in both arms."""
    both = (SHAPES[control], SHAPES[treatment])
    arms = [lambda rng, shape, one=one: (one(rng, shape),) for one in both]
    return Source(f"{control} against {treatment}", MEAN, arms[0], arms[1])


@dataclass(frozen=True, slots=True)
class Found:
    """Of many experiments [experiments]: whether each design showed a difference at any look, and units of
    both arms at the first look at which it may (infinite: never)."""

    open: NDArray[np.bool_]
    planned: NDArray[np.bool_]
    begins: Array


def judged(
    source: Source, share: float, runs: int, seed: int, plan: SequencePlan, units: int = UNITS
) -> Found:
    """Experiments without a difference of means, looked at after every `EVERY` units."""
    rng, parts = np.random.default_rng(seed), []
    for count in chunks(runs):
        parts.append(_looked(source, looks(source, rng, count, units, share, EVERY), plan))
    return Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _looked(
    source: Source, both: tuple[Moments, Moments], plan: SequencePlan
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Array]:
    smaller = np.minimum(both[0].n, both[1].n)
    begin = int((smaller >= 2).all(axis=0).argmax())
    cut = [
        Moments(
            np.asarray(arm.n)[:, begin:],
            *(tuple(np.asarray(x)[:, begin:] for x in part) for part in (arm.sums, arm.products, arm.cubes)),
        )
        for arm in both
    ]
    pair = ArmPair(source.metric, cut[0], cut[1], replace(plan, units=PLANNED))
    ready, z, n = pair.ready, np.abs(pair.z()), np.asarray(pair.n, np.float64)
    always = z >= two_sided_bound(pair.plan.gain(n, ALPHA), ALPHA)
    until = z >= planned_bound(n / PLANNED, ALPHA)
    begins = np.where(ready.any(axis=1), n[np.arange(len(n)), ready.argmax(axis=1)], np.inf)
    return (always & ready).any(axis=1), (until & ready).any(axis=1), begins


def unlike_rows(pairs: Sequence[tuple[str, str]], half: str, runs: int) -> Iterator[dict[str, Any]]:
    """A row for each pair of shapes and split: how often a difference is shown that is not there."""
    for number, (control, treatment) in enumerate(pairs):
        for share in SPLITS[half]:
            source = unlike(control, treatment)
            seed = 1000 * (half == "unseen") + number
            now = judged(source, share, runs, seed, SequencePlan())
            before = judged(source, share, runs, seed, FORMER)
            wrong = [float(found.mean()) for found in (now.open, now.planned)]
            yield {
                "equal means": source.name,
                "split": f"{100 * (1 - share):g}/{100 * share:g}",
                "pairs": half,
                "before: open, %": f"{100 * before.open.mean():.1f}",
                "before: planned, %": f"{100 * before.planned.mean():.1f}",
                "open, %": f"{100 * wrong[0]:.1f}",
                "planned, %": f"{100 * wrong[1]:.1f}",
                "verdict possible, %": f"{100 * np.isfinite(now.begins).mean():.0f}",
                "5 % promised": "TOO OFTEN" if too_often(max(wrong), runs) else "ok",
            }


def too_often(rate: float, runs: int) -> bool:
    """Whether the 95 % interval of what was seen lies above what is promised."""
    return rate - 1.96 * math.sqrt(max(rate * (1 - rate), 1e-12) / runs) > ALPHA


def waiting_rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each well-behaved shape and split: units of both arms at which half of the experiments may
    have a verdict, without the condition and with it."""
    for number, name in enumerate(WELL_BEHAVED):
        for share in (0.5, 0.1):
            source = alike(name, MEAN, unlike(name, name).control)
            begins = [
                float(np.quantile(judged(source, share, runs, 50 + number, plan).begins, q))
                for q in (0.5, 0.8)
                for plan in (FORMER, SequencePlan())
            ]
            yield {
                "arms alike": name,
                "split": f"{100 * (1 - share):g}/{100 * share:g}",
                "half may begin: before": f"{begins[0]:,.0f}",
                "half may begin": f"{begins[1]:,.0f}",
                "80 % may begin: before": f"{begins[2]:,.0f}",
                "80 % may begin": f"{begins[3]:,.0f}",
            }


# --- harm to times ------------------------------------------------------------------------------------------


def seconds(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Answers of about a second; 0.3 % take longer than 4."""
    return rng.lognormal(0, 0.5, shape)


@dataclass(frozen=True, slots=True)
class TimeGuardrail:
    """A guardrail on a time: what a unit counts, and where it is worse by just the margin."""

    name: str
    metric: ComparedMetric
    count: Callable[[Array], Array]
    line: Line


LIMIT, CAP = 4.0, 60.0
TIME_GUARDRAILS = (
    TimeGuardrail(
        "share over 4 s, 2 points",
        ComparedMetric("total_time_over_4s", Kind.PROPORTION, higher_is_better=False),
        lambda values: (values > LIMIT).astype(np.float64),
        Line(offset=0.02),
    ),
    TimeGuardrail(
        "mean capped at 60 s, 10 %",
        replace(LATENCY, bounds=(0.0, CAP)),
        lambda values: values.clip(0, CAP),
        Line(scale=1.1),
    ),
    TimeGuardrail("mean without a cap, 10 %", LATENCY, lambda values: values, Line(scale=1.1)),
)


def stops(
    rail: TimeGuardrail, factor: float, share: float, runs: int, seed: int, units: int, every: int
) -> Array:
    """Units of both arms until the guardrail stops an arm whose times are `factor` as long; else infinite."""

    def arm(times: float) -> Callable[[np.random.Generator, tuple[int, ...]], tuple[Array, ...]]:
        return lambda rng, shape: (rail.count(times * seconds(rng, shape)),)

    source = Source(rail.name, rail.metric, arm(1.0), arm(factor))

    def evidence(both: tuple[Moments, Moments]) -> Array:
        usable = np.minimum(both[0].n, both[1].n) >= 2
        found = np.zeros(usable.shape)
        cut = [
            Moments(
                np.asarray(one.n)[usable],
                *(tuple(np.asarray(x)[usable] for x in p) for p in (one.sums, one.products, one.cubes)),
            )
            for one in both
        ]
        found[usable] = ArmPair(rail.metric, cut[0], cut[1], SequencePlan()).evidence(rail.line, 1)
        return found

    return first_looks(source, evidence, runs, units, seed, share, every)


def harm_rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each guardrail: units until ten-fold times are stopped at 95/5, and how often equal times
    are."""
    for number, rail in enumerate(TIME_GUARDRAILS):
        bounded = math.isfinite(sum(rail.metric.range))
        units, every = (2_000, 5) if bounded else (20_000, 50)
        times = stops(rail, 10.0, 0.05, runs, 90 + number, units, every)
        false = float(np.isfinite(stops(rail, 1.0, 0.05, runs, 95 + number, 20_000, 100)).mean())
        half, most = (float(np.quantile(times, q, method="inverted_cdf")) for q in (0.5, 0.95))
        met = most <= MOST_UNITS
        yield {
            "guardrail": rail.name,
            "half stopped by": f"{half:,.0f}",
            "95 % stopped by": f"{most:,.0f}",
            "equal times stopped, %": f"{100 * false:.1f}",
            f"{MOST_UNITS} units": "met" if met else "MISSED" if number == 0 else "not met",
        }


MOST_UNITS = 300
"""Units of both arms within which the share is to stop ten-fold times."""


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether all targets are met."""
    begin = time.process_time()
    wrong = [*unlike_rows(SEEN, "seen", asked.runs), *unlike_rows(UNSEEN, "unseen", asked.runs)]
    waiting, harm = list(waiting_rows(asked.runs)), list(harm_rows(asked.runs))
    print(report.table(wrong), report.table(waiting), report.table(harm), sep="\n\n")
    missed = [
        f"{next(iter(row.values()))} {row.get('split', '95/5')}"
        for row in (*wrong, *harm)
        if {"TOO OFTEN", "MISSED"} & set(row.values())
    ]
    notes = [
        f"equal means: {UNITS:,} units of both arms, a look after every {EVERY}, {PLANNED:,} planned; the"
        " columns before are without the condition on heavy tails (`SequencePlan.heavy`)",
        "verdict possible: the condition was met at some look; other experiments say to set a cap",
        "TOO OFTEN: the 95 % interval of a cell lies above 5 %",
        "harm: log-normal times around a second, split 95/5; an arm takes ten times as long, or as long",
        "0.2 % wait 100: in 22 % of experiments none of these units has come among the first 750 of the arm,"
        " and nothing in the sums shows a value that has not come; a cap does not need to know of it",
        f"missed: {', '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section tails`: {asked.runs:,} simulated experiments a"
        f" cell, alpha {ALPHA:g}."
    )
    if not asked.dry:
        tables = {"Arms alike: when a verdict may fall": waiting, "Ten-fold times at 95/5": harm}
        print("written to", report.write("experiment-tails", workload, wrong, notes, tables=tables))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=500, help="experiments a cell")
