"""`python -m benchmarks.experiment_statistics`: do the statistics of experiments keep their promises?

Error rates with a look after every outcome, units to a verdict, sample-ratio faults, cost of assignment.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.experiment_simulation import (
    CHUNK,
    Array,
    Source,
    false_positives,
    proportion,
    ratio,
    skewed,
    units_to_verdict,
)
from router.experiments.assignment import Allocation, Arm, Salts
from router.experiments.stats import Plan, fixed_size
from router.experiments.stats.exact import two_arms
from router.experiments.stats.sample_ratio import ALPHA, arm_term, total_term

UNITS, EXPOSURES, HORIZON = 2_000, 40_000, 3
EFFECTS = (
    partial(proportion, 0.05, 0.02),
    partial(proportion, 0.5, 0.06),
    partial(skewed, 0.15),
    partial(ratio, 0.05),
)


def no_effect(experiments: int) -> Iterator[dict[str, Any]]:
    """A/A: share of experiments with a verdict at any look."""
    sources = (proportion(0.05), proportion(0.5), skewed(), skewed(sigma=1.5), ratio())
    sizes = (2 * UNITS, UNITS // 2)
    for number, source in enumerate(sources):
        plans = [Plan(units=planned) for planned in sizes]
        rates = false_positives(source, plans, experiments, UNITS, seed=number)
        for planned, rate in zip(sizes, rates, strict=True):
            yield {
                "A/A": source.name,
                "planned units": planned,
                "false positives, %": rate * 100,
                "target": "5 at most",
            }
    for p in (0.01, 0.05, 0.5):
        rate = exact_false_positives(p, experiments, seed=int(p * 100))
        yield {
            "A/A": f"proportion {p:g}, exact from the first unit",
            "planned units": "-",
            "false positives, %": rate * 100,
            "target": "5 at most",
        }


def exact_false_positives(p: float, experiments: int, seed: int) -> float:
    """With the exact sequence alone, at all of alpha."""
    rng, alarms = np.random.default_rng(seed), 0
    for begin in range(0, experiments, CHUNK):
        shape = (min(CHUNK, experiments - begin), 2 * UNITS)
        second, ones = rng.random(shape) < 0.5, rng.random(shape) < p
        arms = [
            ((member & ones).cumsum(axis=1), (member & ~ones).cumsum(axis=1)) for member in (~second, second)
        ]
        alarms += int((two_arms(arms[0], arms[1]) >= np.log(20)).any(axis=1).sum())
    return alarms / experiments


def true_effect(experiments: int) -> Iterator[dict[str, Any]]:
    """A/B: units until a verdict, in units of the fixed-horizon size at 80 % power."""
    for number, make in enumerate(EFFECTS):
        source = make()
        size = fixed_size(source.effect, source.variances)
        factors = (1, 2, 4)
        plans = [Plan(units=max(200, 2 * size * factor)) for factor in factors]
        found = units_to_verdict(source, plans, experiments, HORIZON * size, seed=100 + number)
        for planned, units in zip(factors, found, strict=True):
            yield {"A/B": source.name, "effect": source.effect, "fixed size per arm": size} | _times(
                units / (2 * size), planned
            )


def _times(found: Array, planned: float) -> dict[str, Any]:
    return {
        "planned / fixed": planned,
        "half have a verdict at": f"{np.median(found):.2f}x",
        "80 % have one at": f"{np.quantile(found, 0.8, method='inverted_cdf'):.2f}x",
        "target": "2.2x",
        f"none by {HORIZON}x, %": float(np.isinf(found).mean()) * 100,
    }


def sample_ratios(runs: int) -> Iterator[dict[str, Any]]:
    """Two arms meant to be equal: alarms at any of 40,000 exposures."""
    arm, total = arm_term(np.arange(EXPOSURES + 1.0), 0.5), total_term(np.arange(1.0, EXPOSURES + 1))
    cases = (
        (0.5, 20 * runs, "0.1 at most"),
        (0.52, runs, "95 at least"),
        (0.51, runs, ""),
        (50 / 99, runs, ""),
    )
    for number, (share, count, target) in enumerate(cases):
        rng, first = np.random.default_rng(200 + number), []
        for begin in range(0, count, CHUNK):
            ones = (rng.random((min(CHUNK, count - begin), EXPOSURES)) < share).cumsum(axis=1)
            rest = np.arange(1, EXPOSURES + 1) - ones
            reached = arm[ones] + arm[rest] - total >= -np.log(ALPHA)
            first.append(np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf))
        found = np.concatenate(first)
        yield {
            "sample ratio": f"{share * 100:.4g} : {100 - share * 100:.4g}",
            "runs": count,
            "alarm by 40,000, %": float(np.isfinite(found).mean()) * 100,
            "one test at the end, %": _single(share) * 100,
            "half by": _when(found, 0.5),
            "95 % by": _when(found, 0.95),
            "target": target,
        }


def _single(share: float) -> float:
    """How often one two-sided test after all exposures alarms."""
    normal, shift = NormalDist(), (2 * share - 1) * np.sqrt(EXPOSURES)
    bound = normal.inv_cdf(1 - ALPHA / 2)
    return normal.cdf(shift - bound) + normal.cdf(-shift - bound)


def _when(found: Array, share: float) -> str:
    at = np.quantile(found, share, method="inverted_cdf")
    return f"{at:,.0f}" if np.isfinite(at) else "-"


def assignment_cost() -> float:
    """Processor microseconds for one unit with holdout, namespace, enrolment and three arms."""
    arms = (Arm("control", 0.5), Arm("new", 0.3), Arm("newer", 0.2))
    allocation = Allocation(Salts("e", "v", "n", "h"), arms, 0.9, (0.0, 0.9), 0.01)
    units, costs = [f"user-{i}" for i in range(1000)], []
    for _ in range(20):
        begin = time.process_time()
        for unit in units:
            allocation.assign(unit)
        costs.append((time.process_time() - begin) / len(units))
    return float(np.median(costs)) * 1e6


def variance_note(source: Source) -> str:
    """That the variance used for the fixed size is the one that is drawn."""
    rng = np.random.default_rng(7)
    columns = source.control(rng, (400_000,))
    if len(columns) == 1:
        drawn = columns[0].var()
    else:
        rate = columns[0].sum() / columns[1].sum()
        drawn = (columns[0] - rate * columns[1]).var() / columns[1].mean() ** 2
    return f"{source.name}: variance of a unit {source.variances[0]:.4g}, drawn {drawn:.4g}"


def main() -> None:
    """Simulate and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=2_000)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    asked = parser.parse_args()
    begin = time.process_time()
    rows = list(no_effect(asked.experiments))
    tables = {
        "True effects: units to a verdict, as multiples of the fixed-horizon size at 80 % power": list(
            true_effect(asked.experiments // 2)
        ),
        "Sample ratio, two arms meant to be equal, looked at after every exposure": list(
            sample_ratios(asked.experiments)
        ),
    }
    notes = [
        f"assignment of one unit: {assignment_cost():.1f} us of processor time (target under 50)",
        f"true effects: {asked.experiments // 2:,} experiments each, up to {HORIZON} times the fixed size",
        "80 % of the runs have a verdict at: the same power that the fixed-horizon size is for",
        "planned / fixed: what the sequence was tuned for, over the fixed-horizon size of both arms",
        "one test at the end: a single chi-square test at 0.001 after 40,000 exposures; where it finds less"
        " than 95 % no sequential test with that error rate finds more. 50.51 : 49.49 is 2 % of one arm's"
        " exposures lost",
        *(variance_note(make()) for make in EFFECTS),
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    for found in (rows, *tables.values()):
        print(report.table(found), end="\n\n")
    print(*notes, sep="\n")
    workload = (
        f"{asked.experiments:,} simulated experiments of {UNITS:,} units per arm in random order, with a look"
        " after every outcome; alpha 0.05, 0.001 for sample ratios. Proportions: exact until burn-in, then"
        " asymptotic, as reports have them."
    )
    if not asked.dry:
        page = report.write("experiment-statistics", workload, rows, notes, tables=tables)
        print("written to", page)


if __name__ == "__main__":
    main()
