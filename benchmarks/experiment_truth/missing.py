"""Section `missing`: is an arm promoted because other users answer in it?

Users are alike in both arms: as many of them are satisfied. In one arm more of them vote, and the further
voters are satisfied more often, or less often, than the others. Where units without a vote are left out, that
looks like an effect. Each experiment is looked at until it ends, by the tests that a report makes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from router.experiments.model import Kind
from router.experiments.stats.compare import ArmPair, SequencePlan
from router.experiments.stats.missing import (
    ALPHA,
    LEE_LEVELS,
    RESPONSE,
    SIDES,
    Response,
    all_units,
    lee_evidence,
    unlike,
)
from router.experiments.stats.moments import ComparedMetric, Moments
from router.experiments.stats.planned import PlannedPair

LEVEL, LOOKS = 0.05, 60
VOTE = ComparedMetric("thumbs_up", Kind.PROPORTION)


@dataclass(frozen=True)
class Cell:
    """Shares that vote in both arms. Of those who would vote in either arm `satisfied` are, by arm; of the
    further voters of the arm with more of them `further` are. `alike`: nobody is better off."""

    name: str
    response: tuple[float, float]
    satisfied: tuple[float, float]
    further: float
    units: int
    alike: bool = True

    @property
    def voters(self) -> tuple[float, float]:
        """Share of satisfied ones among those who vote, by arm."""
        least = min(self.response)
        first, second = (
            (least * of + (share - least) * self.further) / share
            for share, of in zip(self.response, self.satisfied, strict=True)
        )
        return first, second


def equal(response: tuple[float, float], further: float, units: int) -> Cell:
    """Half of the users are satisfied in either arm."""
    first, second = (f"{100 * share:g}" for share in response)
    who = f"further voters {100 * further:g} % satisfied"
    return Cell(f"{first} -> {second} % vote, {who}", response, (0.5, 0.5), further, units)


ALIKE = (
    equal((0.04, 0.055), 0.65, 60_000),
    equal((0.04, 0.055), 0.65, 200_000),
    equal((0.04, 0.055), 1.0, 60_000),
    equal((0.055, 0.04), 0.0, 60_000),
    equal((0.04, 0.042), 1.0, 400_000),
    equal((0.04, 0.043), 0.8, 400_000),
    equal((0.20, 0.21), 1.0, 100_000),
    equal((0.50, 0.52), 1.0, 40_000),
    equal((0.52, 0.50), 0.0, 40_000),
    equal((0.95, 0.97), 1.0, 20_000),
    equal((0.04, 0.04), 0.5, 200_000),
)
BETTER = (
    Cell("4 % vote, 50 -> 58 % satisfied", (0.04, 0.04), (0.5, 0.58), 0.5, 200_000, False),
    Cell("50 % vote, 50 -> 54 % satisfied", (0.5, 0.5), (0.5, 0.54), 0.5, 20_000, False),
    Cell("4 -> 4.2 % vote, 50 -> 60 % satisfied", (0.04, 0.042), (0.5, 0.6), 0.6, 200_000, False),
    Cell("all vote, 50 -> 55 % satisfied", (1.0, 1.0), (0.5, 0.55), 0.5, 8000, False),
)


def looked(cell: Cell, rng: np.random.Generator, runs: int) -> Sequence[tuple[Response, Moments]]:
    """Both arms at all looks, [runs, looks]: who voted, and their votes."""
    ends = np.unique(np.geomspace(200, cell.units / 2, LOOKS).astype(np.int64))
    steps = np.diff(ends, prepend=0)
    found = []
    for share, satisfied in zip(cell.response, cell.voters, strict=True):
        voted = rng.binomial(steps, share, (runs, len(steps)))
        ones = rng.binomial(voted, satisfied).cumsum(axis=1).astype(np.float64)
        seen = voted.cumsum(axis=1).astype(np.float64)
        exposed = np.broadcast_to(ends.astype(np.float64), seen.shape)
        found.append((Response(exposed, seen), Moments(np.maximum(seen, 2), (ones,), (ones,))))
    return found


def settled_at(
    metric: ComparedMetric,
    control: tuple[Response, Moments],
    treatment: tuple[Response, Moments],
    plan: SequencePlan,
) -> NDArray[np.bool_]:
    """Of many experiments at many looks: whether Lee's bounds leave the gain, by `missing_outcomes`."""
    level = -math.log(LEE_LEVELS * plan.alpha)
    always = lee_evidence(metric, control, treatment, plan) >= level
    by_plan = np.ones(always.shape, bool)
    for good, side in SIDES:
        first, second = (all_units(metric, *arm, good) for arm in (control, treatment))
        pair = PlannedPair(RESPONSE, first, second, plan)
        right = side * np.asarray(pair.difference()) > 0
        found = np.logical_or.accumulate((pair.evidence(side=side) >= level) & right, axis=1)
        by_plan &= found & right
    return np.asarray(always | by_plan)


def outcome(cell: Cell, runs: int, seed: int) -> dict[str, float]:
    """Shares of the runs in which the arm may be promoted at some look: by votes alone, and by all rules; and
    in which the check of the response fails."""
    control, treatment = looked(cell, np.random.default_rng(seed), runs)
    plan = SequencePlan(alpha=LEVEL, units=max(200, cell.units))
    pair, level = ArmPair(VOTE, control[1], treatment[1], plan), -math.log(LEVEL)
    gain, users = np.asarray(pair.difference()), control[0].exposed + treatment[0].exposed
    by_plan = PlannedPair(VOTE, control[1], treatment[1], plan, units=np.asarray(users)).evidence() >= level
    by_plan = np.logical_or.accumulate(by_plan & (gain > 0), axis=1)
    better = (by_plan | (pair.evidence() >= level)) & (gain > 0)
    failed = unlike(control[0], treatment[0]) >= -math.log(ALPHA)
    settled = settled_at(VOTE, control, treatment, plan)
    settled |= (control[0].share >= 1) & (treatment[0].share >= 1)
    promoted = better & ~failed & settled
    return {
        "votes": float(better.any(axis=1).mean()),
        "promoted": float(promoted.any(axis=1).mean()),
        "failed": float(failed.any(axis=1).mean()),
    }


def rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each cell."""
    for number, cell in enumerate((*ALIKE, *BETTER)):
        found = outcome(cell, runs, 50 + number)
        missed = found["promoted"] - 1.96 * math.sqrt(LEVEL * (1 - LEVEL) / runs) > LEVEL
        yield {
            "control -> arm": cell.name,
            "units": f"{cell.units:,}",
            "nobody is better off": "yes" if cell.alike else "no",
            "by votes alone, %": f"{100 * found['votes']:.1f}",
            "promoted, %": f"{100 * found['promoted']:.1f}",
            "check failed, %": f"{100 * found['failed']:.1f}",
            "": ("MISSED" if missed else "met") if cell.alike else "",
        }


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether all targets are met."""
    begin = time.process_time()
    found: list[Mapping[str, Any]] = list(rows(asked.runs))
    print(report.table(found))
    missed = [str(row["control -> arm"]) for row in found if row[""] == "MISSED"]
    notes = [
        f"promoted at any of {LOOKS} looks, alpha {LEVEL:g}; target: at most 5 % where nobody is better off",
        "by votes alone: as if the check of the response and Lee's bound were not there",
        "what no test can see is left out: as many vote in both arms, but other users do",
        f"misses: {', '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section missing`: {asked.runs:,} simulated experiments a"
        " cell, judged by the functions that make a report."
    )
    if not asked.dry:
        print("written to", report.write("experiment-missing", workload, found, notes))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=1000, help="experiments a cell")
