"""`python -m benchmarks.experiment_young_units`: guardrails on units whose window is still open.

Two equal arms. Units keep coming, and every unit gives several answers over time, each of which may fail: a
unit's 0 may become a 1 after it was first looked at. How often is harm shown that is not there, with a look
after every few answers? And after how many units is harm shown that is there?
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks import report
from router.experiments.model import Kind
from router.experiments.stats.checks import Guardrail, State, guard
from router.experiments.stats.compare import SequencePlan
from router.experiments.stats.moments import ComparedMetric, Moments

UNITS, ANSWERS, LOOKS = 1000, 4, 25  # units of both arms, answers of each, looks
MARGIN = 0.02
PLAN = SequencePlan(units=UNITS)
Array = np.ndarray[Any, Any]


def looks(rng: np.random.Generator, rates: tuple[float, float], kind: Kind) -> int:
    """Units of both arms when harm is first shown; 0 if never."""
    arm = rng.integers(0, 2, UNITS)
    first = np.arange(UNITS)
    times = np.sort(first[:, None] + rng.exponential(UNITS / 4, (UNITS, ANSWERS)).cumsum(axis=1) - 1)
    times[:, 0] = first
    failed = rng.random((UNITS, ANSWERS)) < np.array(rates)[arm][:, None]
    rail = Guardrail(ComparedMetric("error", kind, higher_is_better=False), MARGIN)
    for now in np.linspace(UNITS / LOOKS, UNITS * 1.5, LOOKS):
        came = first < now
        seen = times < now
        control, treatment = (_sums(failed[own] & seen[own], seen[own], kind) for own in _units(came, arm))
        if min(control.n, treatment.n) >= 2 and guard(rail, control, treatment, PLAN).state is State.BEYOND:
            return int(came.sum())
    return 0


def at_margin(kind: Kind) -> tuple[float, float]:
    """Rates of failing answers with which the metric is worse by just the margin."""
    if kind is Kind.RATIO:
        return 0.1, 0.1 + MARGIN
    return 0.1, 1 - (0.9**ANSWERS - MARGIN) ** (1 / ANSWERS)


def _units(came: Array, arm: Array) -> tuple[Array, Array]:
    return came & (arm == 0), came & (arm == 1)


def _sums(failed: Array, seen: Array, kind: Kind) -> Moments:
    if kind is Kind.PROPORTION:
        return Moments.of(failed.any(axis=1).astype(float))
    return Moments.of(failed.sum(axis=1).astype(float), seen.sum(axis=1).astype(float))


def main() -> None:
    """Simulate and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    rows: list[dict[str, Any]] = []
    for kind in (Kind.PROPORTION, Kind.RATIO):
        for name, rates in (
            ("equal", (0.1, 0.1)),
            ("at the margin", at_margin(kind)),
            ("worse", (0.02, 0.2)),
        ):
            rng = np.random.default_rng(3)
            found = np.array([looks(rng, rates, kind) for _ in range(runs)])
            shown = found[found > 0]
            units = int(np.median(shown)) if len(shown) else "-"
            arms = f"{name}: {rates[0]:.1%}, {rates[1]:.1%}"
            share = len(shown) / runs
            rows.append(
                {"metric": kind.value, "failing": arms, "harm shown": share, "units then, median": units}
            )
    workload = (
        f"{runs} experiments of {UNITS} units with {ANSWERS} answers each over time, {LOOKS} looks at all "
        "units; harm is an error rate worse by more than 2 points, at alpha 0.05."
    )
    print(report.table(rows))
    print(
        "written to",
        report.write("experiment-young-units", workload, rows, ["equal, and at the margin: at most 0.05"]),
    )


if __name__ == "__main__":
    main()
