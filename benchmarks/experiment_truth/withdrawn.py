"""Section `withdrawn`: does taking out one arm of three leave the others as they were?

Units are drawn into arms by the hash that servers use, and each experiment is judged at every look by the
report, twice: all three arms to the end, and with the third arm withdrawn halfway. Without an effect the
share of experiments with an alarm of the sample ratio is counted, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import report as pages
from benchmarks.experiment_truth.unserved import LOOK, running, verdicts
from router.experiments.assignment import Assigned, RunningExperiment, running_of
from router.experiments.model import ArmSpec, Experiment, Kind, MetricSpec, Spec
from router.experiments.report.model import Report
from router.experiments.report.ratio import ratio_of
from router.experiments.stats.moments import Moments
from router.experiments.store.series import TimeBucket
from router.types import AdapterRef

ARMS, WEIGHTS = ("control", "new", "base"), (0.4, 0.4, 0.2)
UNITS, LOOKS = 8000, 16
BASE_RATE = 0.5
EFFECTS = (0.0, 0.05)
"""Of the arm `new`; `base` has none."""
HALF = LOOKS // 2 * LOOK + LOOK / 2
"""When `base` is withdrawn: within a bucket, and after half of the units."""


def plan(withdrawn: bool) -> Spec:
    """Three arms, one proportion."""
    versions = (AdapterRef("medical", "1.0.0"), AdapterRef("medical", "1.1.0"), None)
    arms = (ArmSpec(*each) for each in zip(ARMS, WEIGHTS, versions, strict=True))
    return Spec(
        hypothesis="version 1.1.0 helps more users",
        route="medical",
        arms=tuple(replace(a, withdrawn=HALF if withdrawn and a.name == ARMS[2] else None) for a in arms),
        control=ARMS[0],
        primary=MetricSpec("helped", Kind.PROPORTION),
        planned_units=UNITS,
        window=1.0,
    )


@dataclass(frozen=True)
class Unit:
    """When a unit comes, and what its arms would give."""

    name: str
    time: float
    luck: float


def assigned(experiment: Experiment) -> RunningExperiment:
    """As a server has it."""
    found = running_of(experiment, lambda purpose: f"salt-{purpose}", 0.0)
    assert found is not None
    return found


def buckets(experiments: Sequence[Experiment], units: Sequence[Unit], effect: float) -> list[TimeBucket]:
    """The sums of the units that come, assigned by the first experiment until the withdrawal, then by the
    last: as a server that takes over the change."""
    before, after = assigned(experiments[0]), assigned(experiments[-1])
    found: dict[tuple[int, str], list[int]] = {}
    for unit in units:
        arm = (after if unit.time >= HALF else before).assigned(unit.name)
        if isinstance(arm, Assigned):
            cell = found.setdefault((int(unit.time // LOOK), arm.arm), [0, 0])
            cell[0] += 1
            cell[1] += unit.luck < BASE_RATE + (effect if arm.arm == ARMS[1] else 0.0)
    return [
        TimeBucket(arm, look * LOOK, LOOK - 2, n, 0, {"helped": n}, {"helped": _sums(n, ones)})
        for (look, arm), (n, ones) in sorted(found.items())
    ]


def _sums(units: int, ones: int) -> Moments:
    return Moments(units, (float(ones),), (float(ones),), (float(ones),))


@dataclass(frozen=True)
class Pair:
    """The reports of one experiment at its looks, all arms to the end and with one withdrawn; and whether
    units counted against the shares of all three arms would have raised an alarm."""

    whole: tuple[Report, ...]
    withdrawn: tuple[Report, ...]
    naive: bool

    @property
    def same(self) -> bool:
        """Whether arm `new` is compared alike at every look."""
        both = zip(self.whole, self.withdrawn, strict=True)
        return all(a.arms[0].primary == b.arms[0].primary for a, b in both)

    @property
    def same_verdict(self) -> bool:
        """Whether its verdict and its p by Holm are alike, too."""
        both = zip(self.whole, self.withdrawn, strict=True)
        return all(
            a.arms[0].verdict.decision == b.arms[0].verdict.decision
            and a.arms[0].adjusted_p == b.arms[0].adjusted_p
            for a, b in both
        )

    @property
    def alarm(self) -> bool:
        """Whether the sample ratio alarmed in the experiment with the withdrawn arm."""
        return any(
            check.name == "sample-ratio" and check.failed for one in self.withdrawn for check in one.checks
        )


def pair(seed: int, effect: float, units: int = UNITS) -> Pair:
    """One experiment."""
    rng = np.random.default_rng([seed, int(1000 * effect)])
    times = np.sort(rng.random(units)) * LOOKS * LOOK
    come = [Unit(f"u{seed}-{i}", float(t), float(rng.random())) for i, t in enumerate(times)]
    whole, part = (running(plan(withdrawn), 0.0) for withdrawn in (False, True))
    left = buckets((whole, part), come, effect)
    return Pair(
        tuple(verdicts(whole, buckets((whole,), come, effect), LOOKS)),
        tuple(verdicts(part, left, LOOKS)),
        ratio_of(left, dict(zip(ARMS, WEIGHTS, strict=True))).alarm,
    )


def rows_of(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each effect."""
    for effect in EFFECTS:
        found = [pair(seed, effect) for seed in range(runs)]
        counts = {
            "new compared alike, %": sum(one.same for one in found),
            "its verdict alike, %": sum(one.same_verdict for one in found),
            "sample ratio alarms, %": sum(one.alarm for one in found),
            "alarms by the shares of three, %": sum(one.naive for one in found),
        }
        sound = counts["new compared alike, %"] == runs and counts["sample ratio alarms, %"] <= 0.01 * runs
        yield {
            "effect of new": f"{effect:+.2f}" if effect else "none",
            **{name: f"{100 * count / runs:.1f}" for name, count in counts.items()},
            "target": "met" if sound else "MISSED",
        }


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether the others are alike, and at most 1 % alarm."""
    begin = time.process_time()
    rows = list(rows_of(asked.runs))
    notes = [
        f"{UNITS:,} units, shares {'/'.join(f'{w:g}' for w in WEIGHTS)}, {LOOKS} looks; the third arm is"
        " withdrawn after half of the units, within a bucket of time",
        "its verdict alike: p by Holm, too. It may differ where the third arm's own p would have become the"
        " smaller one after the withdrawal",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(pages.table(rows), *notes, sep="\n\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section withdrawn`: {asked.runs:,} experiments a row,"
        " units assigned by hash, each judged by the server's report with and without the withdrawal."
    )
    if not asked.dry:
        print("written to", pages.write("experiment-withdrawn", workload, rows, notes))
    return not any("MISSED" in row.values() for row in rows)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=100, help="experiments a row")
