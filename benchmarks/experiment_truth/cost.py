"""Not worse in quality, and cheaper: is an arm promoted that is not both?

Quality is a proportion with a margin, cost a log-normal mean that has to improve; a unit that costs more is
pleased more often. An arm that is worse by just the margin, or costs just as much, is promoted by chance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.experiment_simulation import Array, chunks
from benchmarks.experiment_truth.tails import ALPHA, too_often
from router.experiments.model import Kind
from router.experiments.stats.compare import ArmPair, SequencePlan
from router.experiments.stats.moments import ComparedMetric, Moments
from router.experiments.stats.sequences import EQUAL, Line

UNITS, EVERY, PLANNED = 20_000, 50, 5000
QUALITY, MARGIN, CAP = 0.5, 0.05, 10.0
THUMBS = ComparedMetric("thumbs_up", Kind.PROPORTION)
UNCAPPED = ComparedMetric("serving_cost", Kind.MEAN, higher_is_better=False)
CAPPED = ComparedMetric("serving_cost", Kind.MEAN, higher_is_better=False, bounds=(0.0, CAP))


@dataclass(frozen=True, slots=True)
class Truth:
    """By how much the new arm is worse in quality, and its cost as a share of control's."""

    name: str
    worse: float
    cost: float
    wrong: bool


TRUTHS = (
    Truth("worse by just the margin, cost -30 %", MARGIN, 0.7, True),
    Truth("equal quality, equal cost", 0.0, 1.0, True),
    Truth("better by 5 points, equal cost", -0.05, 1.0, True),
    Truth("worse by just the margin, equal cost", MARGIN, 1.0, True),
    Truth("equal quality, cost -20 %", 0.0, 0.8, False),
)


def promoted(truth: Truth, capped: bool, share: float, runs: int, seed: int, units: int = UNITS) -> Array:
    """Units of both arms at which each experiment promotes the arm; else infinite."""
    rng, found = np.random.default_rng(seed), []
    for count in chunks(runs):
        shape = (count, units)
        treated = rng.random(shape) < share
        cost = rng.lognormal(-0.5, 1.0, shape) * np.where(treated, truth.cost, 1.0)
        rate = (
            QUALITY
            - truth.worse * treated
            + 0.02 * np.sign(np.log(cost) + 0.5 - np.log(truth.cost) * treated)
        )
        pleased = (rng.random(shape) < rate).astype(np.float64)
        kept = cost.clip(0, CAP) if capped else cost
        better = _shown(THUMBS, pleased, treated, Line(offset=-MARGIN), 0)
        cheaper = _shown(CAPPED if capped else UNCAPPED, kept, treated, EQUAL, -1)
        both = better & cheaper
        at = (np.arange(both.shape[1]) + 1.0) * EVERY
        found.append(np.where(both.any(axis=1), at[both.argmax(axis=1)], np.inf))
    return np.concatenate(found)


def _shown(metric: ComparedMetric, values: Array, treated: Array, line: Line, side: int) -> Array:
    """Whether treatment is shown to be on the good side of a line [experiments, looks], as by `judge`."""
    arms = [_sums(values, member) for member in (~treated, treated)]
    usable = np.minimum(arms[0].n, arms[1].n) >= 2
    cut = [
        Moments(
            np.asarray(arm.n)[usable],
            *(tuple(np.asarray(x)[usable] for x in part) for part in (arm.sums, arm.products, arm.cubes)),
        )
        for arm in arms
    ]
    pair = ArmPair(metric, cut[0], cut[1], SequencePlan(alpha=ALPHA, units=PLANNED))
    found = np.zeros(usable.shape, bool)
    good = metric.sign * np.asarray(pair.difference(line)) > 0
    found[usable] = (pair.evidence(line, side) >= -np.log(ALPHA)) & good
    return found


def _sums(values: Array, member: Array) -> Moments:
    def up(found: Array) -> Array:
        runs, units = found.shape
        return (found * member).reshape(runs, units // EVERY, EVERY).sum(axis=2).cumsum(axis=1)

    return Moments(up(np.ones(member.shape)), *((up(values**power),) for power in (1, 2, 3)))


def rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each truth, cost metric and split."""
    for number, truth in enumerate(TRUTHS):
        for capped in (True, False):
            for share in (0.5, 0.1):
                times = promoted(truth, capped, share, runs, 300 + number)
                rate = float(np.isfinite(times).mean())
                half = float(np.quantile(times, 0.5, method="inverted_cdf"))
                yield {
                    "new arm": truth.name,
                    "cost": f"capped at {CAP:g}" if capped else "no cap",
                    "split": f"{100 * (1 - share):g}/{100 * share:g}",
                    "promoted, %": f"{100 * rate:.1f}",
                    "half by": f"{half:,.0f}" if np.isfinite(half) else "",
                    "5 % promised": ("TOO OFTEN" if too_often(rate, runs) else "ok") if truth.wrong else "",
                }


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether all targets are met."""
    begin = time.process_time()
    found = list(rows(asked.runs))
    print(report.table(found))
    missed = [f"{row['new arm']} {row['split']}" for row in found if row["5 % promised"] == "TOO OFTEN"]
    notes = [
        f"quality {QUALITY:g} with a margin of {MARGIN:g}; log-normal cost, sigma 1; {UNITS:,} units of both"
        f" arms, a look after every {EVERY}, {PLANNED:,} planned",
        f"missed: {', '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section cost`: {asked.runs:,} simulated experiments a"
        f" cell, alpha {ALPHA:g}."
    )
    if not asked.dry:
        print("written to", report.write("experiment-cost", workload, found, notes))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=300, help="experiments a cell")
