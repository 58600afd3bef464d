"""Section `answering`: does the planned number of users decide, however few of them have an outcome?

Users come to two arms at an even pace, and some of them vote; who does not is left out. As many users are
planned as one z test of their votes takes for 85 % power. The experiment is looked at after every fortieth of
them, by the tests that a report makes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.experiment_truth.missing import settled_at
from router.experiments.model import Kind
from router.experiments.stats.compare import ArmPair, SequencePlan
from router.experiments.stats.missing import Response
from router.experiments.stats.moments import ComparedMetric, Moments
from router.experiments.stats.planned import PlannedPair
from router.experiments.stats.planning import fixed_size

ALPHA, POWER, LOOKS, WITHIN = 0.05, 0.85, 40, 0.05
VOTE = ComparedMetric("thumbs_up", Kind.PROPORTION)
CONTROL, BETTER = 0.5, 0.6
Shown = NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """Share of the users that votes, and by how many times another part does in the second half."""

    share: float
    later: float = 1.0

    @property
    def shares(self) -> NDArray[np.float64]:
        """At each look."""
        half = np.arange(1, LOOKS + 1) > LOOKS / 2
        return np.where(half, min(1.0, self.share * self.later), self.share)

    @property
    def name(self) -> str:
        """In words."""
        first, last = (f"{100 * self.shares[i]:g} %" for i in (0, -1))
        return first if self.later == 1 else f"{first}, then {last}"


CELLS = (
    *(Cell(share) for share in (0.04, 0.1, 0.3, 1.0)),
    *(Cell(0.1, later) for later in (3.0, 1 / 3)),
)


def planned_users(cell: Cell) -> int:
    """Of both arms, for which one z test of the votes at the end has its power, in whole looks."""
    middle = (CONTROL + BETTER) / 2
    variances = (CONTROL * (1 - CONTROL), BETTER * (1 - BETTER))
    votes = fixed_size(BETTER - CONTROL, variances, ALPHA, POWER, under_equality=middle * (1 - middle))
    return math.ceil(votes / float(cell.shares.mean()) / (2 * LOOKS)) * 2 * LOOKS


def votes(cell: Cell, users: int, good: float, rng: np.random.Generator, runs: int) -> Moments:
    """An arm's votes at all looks, [runs, looks]."""
    seen = rng.binomial(users // (2 * LOOKS), cell.shares, (runs, LOOKS))
    ones = rng.binomial(seen, good).cumsum(axis=1).astype(np.float64)
    return Moments(np.maximum(seen.cumsum(axis=1), 2).astype(np.float64), (ones,), (ones,))


def outcome(cell: Cell, better: float, runs: int, seed: int) -> dict[str, Shown]:
    """Of each run: whether the z test at the end shows a gain; whether a report does by the planned users,
    with the number of users at which it does; whether who votes cannot undo it; and harm at any look."""
    rng, users = np.random.default_rng(seed), planned_users(cell)
    control, treatment = (votes(cell, users, good, rng, runs) for good in (CONTROL, better))
    there = users / LOOKS * np.arange(1, LOOKS + 1)
    plan = SequencePlan(alpha=ALPHA, units=users)
    pair, level = ArmPair(VOTE, control, treatment, plan), -math.log(ALPHA)
    gain, always = np.asarray(pair.difference()), pair.evidence() >= level
    by_plan = PlannedPair(VOTE, control, treatment, plan, units=there).evidence() >= level
    shown = (np.logical_or.accumulate(by_plan & (gain > 0), axis=1) | always) & (gain > 0)
    arms = [(Response(np.broadcast_to(there / 2, gain.shape), arm.n), arm) for arm in (control, treatment)]
    settled = settled_at(VOTE, arms[0], arms[1], plan)
    both = (control.sums[0][:, -1] + treatment.sums[0][:, -1]) / (control.n[:, -1] + treatment.n[:, -1])
    error = np.sqrt(both * (1 - both) * (1 / control.n[:, -1] + 1 / treatment.n[:, -1]))
    return {
        "z": gain[:, -1] / error > 1.96,
        "shown": shown.any(axis=1),
        "users": np.where(shown.any(axis=1), there[shown.argmax(axis=1)], users) / users,
        "settled": (shown & (settled | bool(cell.share >= 1))).any(axis=1),
        "harm": (always & (gain < 0)).any(axis=1),
    }


def rows(runs: int, error_runs: int) -> Iterator[dict[str, Any]]:
    """A row for each cell."""
    for number, cell in enumerate(CELLS):
        found = {name: float(of.mean()) for name, of in outcome(cell, BETTER, runs, 70 + number).items()}
        alike = outcome(cell, CONTROL, error_runs, 90 + number)
        wrong = float((alike["shown"] | alike["harm"]).mean())
        often = wrong - 1.96 * math.sqrt(ALPHA * (1 - ALPHA) / error_runs) > ALPHA
        far = found["z"] - found["shown"] > WITHIN
        yield {
            "users who vote": cell.name,
            "planned users": f"{planned_users(cell):,}",
            "one z test, %": f"{100 * found['z']:.1f}",
            "shown by the planned users, %": f"{100 * found['shown']:.1f}",
            "users it took": f"{found['users']:.2f}x",
            "not undone by who votes, %": f"{100 * found['settled']:.1f}",
            "equal arms, any look, %": f"{100 * wrong:.1f}",
            "": "TOO OFTEN" if often else "MISSED" if far else "met",
        }


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether all targets are met."""
    begin = time.process_time()
    found: list[Mapping[str, Any]] = list(rows(asked.runs, asked.error_runs))
    print(report.table(found))
    missed = [str(row["users who vote"]) for row in found if row[""] != "met"]
    notes = [
        f"votes {100 * CONTROL:g} -> {100 * BETTER:g} % good; {LOOKS} looks, the last at the planned users;"
        f" target: power within {100 * WITHIN:g} points of one z test at the end, and at most"
        f" {100 * ALPHA:g} % promoted or stopped where arms are equal",
        "users it took: mean part of the planned users until a gain was shown, or all of them",
        "not undone by who votes: shown, and by Lee's bounds not other voters' work, as promotion needs",
        f"misses: {', '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section answering`: {asked.runs:,} simulated experiments a"
        f" cell with an effect, {asked.error_runs:,} without, judged by the functions that make a report."
    )
    if not asked.dry:
        print("written to", report.write("experiment-answering", workload, found, notes))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=1000, help="experiments a cell with an effect")
    parser.add_argument("--error-runs", type=int, default=2000, help="experiments a cell without one")
