"""Section `unserved`: what happens where one arm loses users before the first token?

In each simulated experiment treatment loses 4 % of its users between assignment and first token; nothing else
differs. `those who would not be helped` makes those who stay look better: the rate of all units is the same
in both arms. `at random` makes treatment truly worse. Each experiment is judged at every look by the report
of the server, of sums as its store keeps them. `first token` is how units were counted before.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks import report as pages
from router.experiments.assignment import ArmAssignment
from router.experiments.model import (
    ArmSpec,
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Spec,
    StoredOutcome,
    Unanswered,
)
from router.experiments.report.build import report
from router.experiments.report.model import Report
from router.experiments.runtime import LiveExperiments
from router.experiments.stats.moments import Moments
from router.experiments.store.series import PhaseData, TimeBucket
from router.experiments.store.store import ExperimentStore
from router.ports import End, Served, Stage
from router.types import (
    AdapterRef,
    Decision,
    FinishReason,
    Reason,
    Request,
    RoutingHints,
    SamplingParams,
    Usage,
)

RATE, LOST = 0.7, 0.04
UNITS, LOOKS = 20_000, 10
NAME, ARMS, LOOK = "trial", ("control", "new"), 10.0  # seconds between looks
LOSSES = ("none", "at random", "those who would not be helped")
PROMISED = 0.05
USAGE = Usage(completion_tokens=20, time_to_first_token=0.1, total_time=0.5)
EARLY = Usage(total_time=0.2)


def plan(missing: Unanswered, units: int) -> Spec:
    """One proportion decides; a unit is mature after a second."""
    return Spec(
        hypothesis="version 1.1.0 helps more users",
        route="medical",
        arms=(
            ArmSpec(ARMS[0], 0.5, AdapterRef("medical", "1.0.0")),
            ArmSpec(ARMS[1], 0.5, AdapterRef("medical", "1.1.0")),
        ),
        control=ARMS[0],
        primary=MetricSpec("helped", Kind.PROPORTION, missing=missing),
        planned_units=units,
        window=1.0,
    )


def running(spec: Spec, started: float) -> Experiment:
    """In its first phase."""
    phase = ExperimentPhase(1, started, "enrolment", "variant", spec)
    return Experiment(NAME, spec, Lifecycle.RUNNING, (phase,), started, started)


@dataclass(frozen=True)
class Drawn:
    """Units in the order in which they come: arm (0 control), whether helped, whether lost."""

    arm: NDArray[np.int64]
    helped: NDArray[np.bool_]
    lost: NDArray[np.bool_]


def drawn(rng: np.random.Generator, loss: str, units: int) -> Drawn:
    """One experiment's units. Who is lost is helped by nothing."""
    arm, helped = rng.integers(0, 2, units), rng.random(units) < RATE
    share = {"none": 0.0, "at random": LOST}.get(loss, LOST / (1 - RATE))
    lost = (arm == 1) & (rng.random(units) < share)
    if loss == LOSSES[2]:
        lost &= ~helped
    return Drawn(arm, helped & ~lost, lost)


def buckets(found: Drawn, looks: int, from_assignment: bool, missing: Unanswered) -> tuple[TimeBucket, ...]:
    """The sums that the store keeps of them, a bucket for each look and arm."""
    size, made = len(found.arm) // looks, []
    counted = np.ones_like(found.lost) if from_assignment else ~found.lost
    valued = counted if missing is Unanswered.ZERO else counted & ~found.lost
    for look in range(looks):
        part = slice(look * size, (look + 1) * size)
        for number, arm in enumerate(ARMS):
            here = found.arm[part] == number
            n = int((valued[part] & here).sum())
            ones = float((found.helped[part] & valued[part] & here).sum())
            exposed = int((counted[part] & here).sum())
            answered = int((here & ~found.lost[part]).sum())
            sums = Moments(n, (ones,), (ones,), (ones,))
            start = look * LOOK
            made.append(TimeBucket(arm, start, LOOK - 2, exposed, 0, {"helped": answered}, {"helped": sums}))
    return tuple(made)


class SummedStore:
    """What a report reads of a store, of sums that are there already, until the time of a look."""

    def __init__(self, experiment: Experiment, made: Sequence[TimeBucket]) -> None:
        self.experiment, self.made, self.peak, self.now = experiment, made, 0.0, 0.0

    def get(self, name: str) -> Experiment:
        """The one experiment."""
        return self.experiment

    def trail(self, name: str) -> tuple[AuditEntry, ...]:
        """Nothing was done."""
        return ()

    def data(self, name: str, phase: int) -> PhaseData:
        """Until now."""
        here = tuple(b for b in self.made if b.start + b.seconds <= self.now)
        return PhaseData(here, 0, {}, {}, self.peak)

    def set_peak(self, name: str, phase: int, peak: float) -> None:
        """An alarm stays."""
        self.peak = max(self.peak, peak)


def verdicts(experiment: Experiment, made: Sequence[TimeBucket], looks: int) -> Iterator[Report]:
    """The reports of all looks."""
    store = SummedStore(experiment, made)
    for look in range(looks):
        store.now = (look + 1) * LOOK
        yield report(cast(ExperimentStore, store), NAME, now=store.now, points=0)


def simulated(
    loss: str, missing: Unanswered, from_assignment: bool, runs: int, units: int = UNITS, looks: int = LOOKS
) -> dict[str, float]:
    """Shares of experiments in which promotion was ever offered, an arm stopped for harm, verdicts invalid,
    and the sample ratio alarmed. The same units whatever counts."""
    counts = dict.fromkeys(("promote", "stop for harm", "invalid", "sample-ratio"), 0)
    experiment = running(plan(missing, units), 0.0)
    for run in range(runs):
        found = drawn(np.random.default_rng([LOSSES.index(loss), run]), loss, units)
        seen: set[str] = set()
        for one in verdicts(experiment, buckets(found, looks, from_assignment, missing), looks):
            seen.add(one.verdict.decision)
            seen.update(check.name for check in one.checks if check.failed)
            if one.verdict.decision in ("promote", "stop for harm"):
                break
        for name in counts:
            counts[name] += name in seen
    return {name: count / runs for name, count in counts.items()}


def rows_of(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each cell."""
    for loss in LOSSES:
        for missing in Unanswered:
            for from_assignment in (False, True):
                found = simulated(loss, missing, from_assignment, runs)
                late = from_assignment and _too_often(found["promote"], runs)
                yield {
                    "treatment loses": loss,
                    "missing": missing.value,
                    "counted from": "assignment" if from_assignment else "first token",
                    "promotion offered, %": f"{100 * found['promote']:.1f}",
                    "stopped for harm, %": f"{100 * found['stop for harm']:.1f}",
                    "invalid, %": f"{100 * found['invalid']:.1f}",
                    "sample ratio alarms, %": f"{100 * found['sample-ratio']:.1f}",
                    "at most 5 % promoted": ("TOO OFTEN" if late else "ok") if from_assignment else "",
                }


def _too_often(rate: float, runs: int) -> bool:
    return rate - 1.96 * (max(rate * (1 - rate), 1e-12) / runs) ** 0.5 > PROMISED


# --- the same through assignment, recorder and store


async def stored(folder: Path, units: int, seed: int, loss: str = LOSSES[2]) -> Report:
    """An experiment whose requests go the way of a server's, and its report."""
    dice, began = random.Random(seed), time.time()
    store = ExperimentStore(f"sqlite:///{folder}/experiments-{seed}.db")
    store.create(running(plan(Unanswered.ZERO, units), began))
    live = LiveExperiments(store, poll_seconds=600, look_seconds=600)
    await live.start()
    try:
        for number in range(units):
            _requested(live, f"user-{seed}-{number}", dice, loss)
            if number % 500 == 0:
                await live.recorder.flush()
        await live.recorder.flush()
        return report(store, NAME, now=time.time() + 60, points=0)
    finally:
        await live.close()


def _requested(live: LiveExperiments, unit: str, dice: random.Random, loss: str) -> None:
    request = Request(unit, turns=(), routing=RoutingHints(unit=unit))
    decision = Decision(AdapterRef("medical", "1.0.0"), Reason.CLASSIFIED)
    arm = live.assign(request, decision)
    assert isinstance(arm, ArmAssignment)
    served = Served(request, decision, SamplingParams(), arm)
    helped = dice.random() < RATE
    share = LOST if loss == "at random" else 0.0 if loss == "none" or helped else LOST / (1 - RATE)
    if arm.arm.name == ARMS[1] and dice.random() < share:
        live.unserved(served, End(None, "", EARLY, error="OVERLOADED", stage=Stage.ADMISSION))
        return
    for watcher in live.watchers(served):
        watcher.began()
        watcher.ended(End(FinishReason.STOP, "", USAGE))
    outcome = StoredOutcome(f"helped-{unit}", "helped", float(helped), time.time(), response_id=unit)
    live.recorder.observe((outcome,))


def stored_rows(experiments: int, units: int) -> Iterator[dict[str, Any]]:
    """A row for each experiment through the store."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(experiments):
            found = asyncio.run(stored(Path(folder), units, seed))
            numbers: Mapping[str, Any] = {one.arm: one for one in found.numbers}
            ended = sum(ends.errors for ends in numbers[ARMS[1]].ended)
            yield {
                "experiment": seed,
                "units of control and treatment": f"{numbers[ARMS[0]].units:,}, {numbers[ARMS[1]].units:,}",
                "of these unserved": f"{ended:,}",
                "verdict": f"{found.verdict.decision} ({found.verdict.rule})",
            }


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether promotion is offered in at most 5 % of each cell."""
    begin = time.process_time()
    rows = list(rows_of(asked.runs))
    kept = list(stored_rows(asked.stored, asked.stored_units))
    notes = [
        f"{UNITS:,} units, {LOOKS} looks, an experiment ends with a promotion or a stop;"
        f" {RATE:.0%} of the users are helped, treatment loses {LOST:.0%} of its users",
        "at random, zero: treatment is truly worse, by 2.8 points of all units",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(pages.table(rows), pages.table(kept), *notes, sep="\n\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section unserved`: {asked.runs:,} simulated experiments a"
        " cell, judged by the server's report; beside them some whose requests go through assignment,"
        " recorder and store."
    )
    if not asked.dry:
        tables = {"Through assignment, recorder and store: those who would not be helped are lost": kept}
        print("written to", pages.write("experiment-unserved", workload, rows, notes, tables=tables))
    return not any("TOO OFTEN" in row.values() for row in rows)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=200, help="experiments a cell")
    parser.add_argument("--stored", type=int, default=3, help="experiments through the store")
    parser.add_argument("--stored-units", type=int, default=20_000, help="units of each of these")
