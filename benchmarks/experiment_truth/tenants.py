"""Section `tenants`: is a test by tenant true where tenants are few and of unlike size?

Tenants have log-normal sizes and levels of their own. Half of them have the new arm. Their answers are
compared in three ways: each answer as if it were independent, tenants' means by a normal test, and by the
permutation test that judges experiments by tenant.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.experiment_simulation import Array
from router.experiments.stats.permutation import relabelled

ALPHA = 0.05
MANY = (10, 12, 20, 50, 200)  # tenants
SIZES = 1.5  # sigma of the logarithm of a tenant's answers
MEDIAN = 200  # answers of the median tenant
RATE, LEVELS = 0.5, 0.08  # share of good answers, and how much tenants' levels differ
HEAVY = 1.5  # sigma of the logarithm of an amount that a tenant spends
GAIN = 0.1
REPORTED = "permutation of tenants"


@dataclass(frozen=True, slots=True)
class Drawn:
    """Experiments [runs, tenants]: mean, answers, and variance of one answer of each tenant."""

    means: Array
    answers: Array
    variance: Array


def rates(rng: np.random.Generator, runs: int, many: int) -> Drawn:
    """Shares of good answers."""
    answers = np.maximum(1, np.rint(MEDIAN * rng.lognormal(0, SIZES, (runs, many))))
    level = np.clip(rng.normal(RATE, LEVELS, (runs, many)), 0.02, 0.98)
    means = rng.binomial(answers.astype(np.int64), level) / answers
    return Drawn(means, answers, means * (1 - means))


def amounts(rng: np.random.Generator, runs: int, many: int) -> Drawn:
    """Amounts with a heavy tail over tenants."""
    answers = np.maximum(1, np.rint(MEDIAN * rng.lognormal(0, SIZES, (runs, many))))
    means = rng.lognormal(0, HEAVY, (runs, many)) * (1 + rng.normal(0, 1, (runs, many)) / np.sqrt(answers))
    return Drawn(means, answers, means**2)


METRICS = {"share of good answers": rates, "amount, heavy tail": amounts}


def called(drawn: Drawn, gain: float) -> dict[str, Array]:
    """By test: p of each run, with half of the tenants in the new arm."""
    half = drawn.means.shape[1] // 2  # tenants are exchangeable, so that the first ones are as good as any
    treated = _arm(drawn, slice(0, half), gain)
    control = _arm(drawn, slice(half, None), 0.0)
    rows = zip(control.means, treated.means, strict=True)
    shares = [arm.answers / arm.answers.sum(axis=1, keepdims=True) for arm in (control, treated)]
    totals = [(w * arm.means).sum(axis=1) for w, arm in zip(shares, (control, treated), strict=True)]
    errors = [
        (w**2 / arm.answers * arm.variance).sum(axis=1)
        for w, arm in zip(shares, (control, treated), strict=True)
    ]
    spread = sum(arm.means.var(axis=1, ddof=1) / arm.means.shape[1] for arm in (control, treated))
    difference = treated.means.mean(axis=1) - control.means.mean(axis=1)
    return {
        REPORTED: np.array([relabelled(*row, ALPHA).p for row in rows]),
        "normal test of tenants' means": _two_sided(difference / np.sqrt(spread)),
        "each answer by itself": _two_sided((totals[1] - totals[0]) / np.sqrt(sum(errors))),
    }


def _arm(drawn: Drawn, which: slice, gain: float) -> Drawn:
    return Drawn(drawn.means[:, which] + gain, drawn.answers[:, which], drawn.variance[:, which])


def _two_sided(z: Array) -> Array:
    normal = NormalDist()
    return np.array([2 * normal.cdf(-abs(float(one))) for one in z])


def rows_of(gain: float, runs: int) -> Iterator[dict[str, Any]]:
    """How often an effect is shown."""
    for name, draw in METRICS.items():
        for many in MANY:
            count = runs if many <= 50 else runs // 5
            found = called(draw(np.random.default_rng(1000 + many), count, many), gain)
            rate = {test: float((p <= ALPHA).mean()) for test, p in found.items()}
            row = {"metric": name, "tenants": f"{many}"} | {
                f"{test}, %": f"{100 * share:.1f}" for test, share in rate.items()
            }
            ours = rate[REPORTED]
            often = ours - 1.96 * math.sqrt(max(ours * (1 - ours), 1e-12) / count) > ALPHA
            yield row if gain else row | {"5 % promised": "TOO OFTEN" if often else "ok"}


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether equal arms are called different no more often than promised."""
    begin = time.process_time()
    errors, powers = list(rows_of(0.0, asked.runs)), list(rows_of(GAIN, asked.runs // 2))
    print(report.table(errors), report.table(powers), sep="\n\n")
    missed = [row for row in errors if "TOO OFTEN" in row.values()]
    notes = [
        f"answers of a tenant: log-normal, sigma {SIZES:g}, median {MEDIAN}; levels of tenants differ by"
        f" {LEVELS:g} (standard deviation), amounts by a log-normal with sigma {HEAVY:g}",
        f"each tenant counts once; half of them have the new arm; level {ALPHA:g}, one look",
        f"misses: {len(missed) or 'none'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section tenants`: {asked.runs:,} simulated experiments a"
        f" cell without an effect, {asked.runs // 2:,} with one, of 200 tenants a fifth of these; in"
        " percent of them an effect is shown."
    )
    if not asked.dry:
        tables = {f"The new arm is better by {GAIN:g}": powers}
        print("written to", report.write("experiment-tenants", workload, errors, notes, tables=tables))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=2000, help="experiments a cell without an effect")
