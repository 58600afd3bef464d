"""Section `maturity`: do guardrails and harm rules judge arms that are equally complete?

Units come to two arms at an even pace, and their outcomes come later. Buckets are made of what has happened
by each look, as the store makes them, and judged by the functions that make a report: `PhaseEvidence`, and
the evidence of guardrails. Cells are those where arms of equal age are not equally
complete, or where harm comes late in the window.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from router.experiments.model import (
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Spec,
    within_key,
)
from router.experiments.report.source import PhaseEvidence, health_of
from router.experiments.stats.compare import ArmPair
from router.experiments.stats.moments import Moments
from router.experiments.store.series import PhaseData, TimeBucket
from router.experiments.store.stretches import stretch_number, stretch_span, width_of
from router.experiments.verdict import ExperimentVerdict, judge

Array = NDArray[np.float64]
HOUR, DAY = 3600.0, 86_400.0
WINDOW, DAYS = 7 * DAY, 28
SOLVED = MetricSpec("solved", Kind.PROPORTION)
DOWN = MetricSpec("thumbs_down", Kind.PROPORTION, higher_is_better=False, margin=0.05)
ARMS = ("control", "new")
RATES = (250, 500, 2500)
"""Units of an arm and day."""

Events = Callable[[np.random.Generator, int], Array]
"""Seconds from a unit's first exposure to its event, [units]; infinite without one in the window."""


@dataclass(frozen=True)
class Cell:
    """Two arms whose events come by their own laws, and what must not be, or must be, shown of them."""

    name: str
    events: tuple[Events, Events]
    wrong: str
    """`within` or `harm`: what is shown wrongly; `` where harm has to be found."""


def spread(rate: float, delay: Callable[[np.random.Generator, int], Array]) -> Events:
    """So many units have an event within the window, after a delay [units] in seconds."""

    def drawn(rng: np.random.Generator, units: int) -> Array:
        return np.where(rng.random(units) < rate, delay(rng, units), np.inf)

    return drawn


def evenly(first: float, last: float) -> Callable[[np.random.Generator, int], Array]:
    """Delays between two days."""
    return lambda rng, units: rng.uniform(first * DAY, last * DAY, units)


def about(days: float) -> Callable[[np.random.Generator, int], Array]:
    """Exponential delays that end with the window."""

    def drawn(rng: np.random.Generator, units: int) -> Array:
        reach = -math.expm1(-WINDOW / (days * DAY))
        return np.asarray(-days * DAY * np.log1p(-reach * rng.random(units)))

    return drawn


def early_and_late(rate: float, extra: float) -> Events:
    """Events over five days, and more on the days 5 to 7."""
    first, then = spread(rate, evenly(0, 5)), spread(extra / (1 - rate), evenly(5, 7))
    return lambda rng, units: np.minimum(first(rng, units), then(rng, units))


WITHIN_CELLS = (
    Cell("20 -> 25 %, at its margin", (spread(0.2, about(2)), spread(0.25, about(2))), "within"),
    Cell("20 -> 30 %, harm on days 5 to 7", (early_and_late(0.2, 0), early_and_late(0.2, 0.1)), "within"),
    Cell("20 -> 25 %, slower in the arm", (spread(0.2, about(1)), spread(0.25, about(4))), "within"),
)
HARM_CELLS = (
    Cell("30 %, after 1 day and 3", (spread(0.3, about(1)), spread(0.3, about(3))), "harm"),
    Cell("30 %, after 3 days and 1", (spread(0.3, about(3)), spread(0.3, about(1))), "harm"),
    Cell("30 %, equal delays", (spread(0.3, about(1)), spread(0.3, about(1))), "harm"),
)
FOUND_CELLS = (
    Cell("20 -> 30 %, harm on days 5 to 7", (early_and_late(0.2, 0), early_and_late(0.2, 0.1)), ""),
)


def plan(primary: MetricSpec = SOLVED, rails: Sequence[MetricSpec] = (DOWN,), **fields: Any) -> Spec:
    """Two arms of equal weight, with a window of a week."""
    arms = tuple(ArmSpec(name, 0.5) for name in ARMS)
    whole: dict[str, Any] = {"window": WINDOW, "planned_units": 20_000} | fields
    return Spec("", "medical", arms, "control", primary, tuple(rails), **whole)


@dataclass
class Simulated:
    """One experiment: when its units came, in seconds, and when their events did, by arm and metric."""

    phase: ExperimentPhase
    firsts: Mapping[str, Array]
    events: Mapping[str, dict[str, Array]]
    _placed: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def evidence(self, now: float) -> PhaseEvidence:
        """What a report is made from at a look."""
        data = PhaseData(tuple(self._buckets(now)), 0, {}, {}, 0.0)
        experiment = Experiment("simulated", self.phase.spec, Lifecycle.RUNNING, (self.phase,))
        return PhaseEvidence(experiment, self.phase, data, now)

    def verdict(self, now: float) -> ExperimentVerdict:
        """The verdict at a look."""
        source = self.evidence(now)
        return judge(source.design, source.outcomes(), health_of(source))

    def _buckets(self, now: float) -> Iterator[TimeBucket]:
        width = width_of(self.phase)
        for arm, first in self.firsts.items():
            if arm not in self._placed:
                self._placed[arm] = np.array([stretch_number(at, width) for at in first], np.int64)
            place = self._placed[arm]
            came = first <= now
            exposed = np.bincount(place[came], minlength=1)
            ones = {
                metric: np.bincount(place[came & (first + delay <= now)], minlength=len(exposed))
                for metric, delay in self.events[arm].items()
            }
            for number in np.flatnonzero(exposed):
                n = int(exposed[number])
                offset, seconds = stretch_span(int(number), width)
                moments = {metric: _ones(n, int(found[number])) for metric, found in ones.items()}
                yield TimeBucket(arm, offset, seconds, n, 0, dict.fromkeys(moments, n), moments)


def _ones(units: int, count: int) -> Moments:
    return Moments(units, (float(count),), (float(count),))


def simulated(
    rng: np.random.Generator, spec: Spec, events: Mapping[str, tuple[Events, Events]], a_day: int, days: float
) -> Simulated:
    """Units that come evenly to both arms; `events` by metric, of (control, arm)."""
    firsts = {arm: np.sort(rng.uniform(0, days * DAY, rng.poisson(a_day * days))) for arm in ARMS}
    made = {
        arm: {metric: laws[i](rng, len(firsts[arm])) for metric, laws in events.items()}
        for i, arm in enumerate(ARMS)
    }
    return Simulated(ExperimentPhase(1, 0.0, "e", "v", spec, width=4 * HOUR), firsts, made)


def nothing(rng: np.random.Generator, units: int) -> Array:
    """The primary metric: alike in both arms, and known at once."""
    return np.where(rng.random(units) < 0.5, 60.0, np.inf)


def stacked(found: Sequence[Mapping[str, Moments]], metric: str) -> Moments:
    """The sums of many looks as one, [looks]; of proportions, so without third powers."""
    moments = [sums[metric] for sums in found]
    n, ones = (
        np.array(column) for column in zip(*((float(m.n), float(m.sums[0])) for m in moments), strict=True)
    )
    return Moments(n, (ones,), (ones,))


def states(one: Simulated, looks: Array) -> set[str]:
    """What is shown of the guardrail at any look, by the sums of a report and the evidence of `guard`, which
    is computed of all looks at once."""
    sources = [one.evidence(float(now)) for now in looks]
    design = sources[0].design
    sums = [source.outcomes() for source in sources]
    usable = [found for found in sums if min(float(m[DOWN.name].n) for m in found.values()) >= 2]
    if not usable:
        return set()

    (rail,), plan = design.guardrails, design.plan_for("new")
    control, arm = (stacked([found[name] for found in usable], rail.metric.name) for name in ARMS)
    pair, worse = ArmPair(rail.metric, control, arm, plan), -rail.metric.sign
    evidence = {
        "within": float(pair.evidence(rail.line, -worse).max()),
        "harm": float(pair.evidence(rail.line, worse).max()) + math.log(rail.part),
    }
    return {name for name, found in evidence.items() if found >= -math.log(plan.alpha)}


def shown(cell: Cell, a_day: int, runs: int, seed: int, days: int = DAYS) -> dict[str, float]:
    """How often a guardrail was within at any look, and how often harm was shown, as shares of the runs."""
    rng = np.random.default_rng(seed)
    counts = {"within": 0, "harm": 0}
    looks = np.arange(1, 2 * days + 1) * DAY / 2
    for _ in range(runs):
        one = simulated(rng, plan(), {"solved": (nothing, nothing), DOWN.name: cell.events}, a_day, days)
        found = states(one, looks)
        for name in counts:
            counts[name] += name in found
    return {name: count / runs for name, count in counts.items()}


# --- both readings of one guardrail -------------------------------------------------------------------------

EARLY = 600.0
ERROR = MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.02)


def at_once(rng: np.random.Generator, units: int) -> Array:
    """Delays within the early reading."""
    return rng.uniform(0, EARLY, units)


TWICE_CELLS = (
    Cell("3 -> 5 %, at its margin, at once", (spread(0.03, at_once), spread(0.05, at_once)), "harm"),
    Cell(
        "3 -> 5 %, at its margin, over a week",
        (spread(0.03, evenly(0, 7)), spread(0.05, evenly(0, 7))),
        "harm",
    ),
    Cell("3 %, at once", (spread(0.03, at_once), spread(0.03, at_once)), "harm"),
    Cell("3 % over a week and at once", (spread(0.03, evenly(0, 7)), spread(0.03, at_once)), "harm"),
)
"""Errors of both arms. In the last cell the arm errs no more often, and sooner: its early reading alone is
worse, by 3 points where 2 are allowed, so a stop for harm is right about what it reads."""


def read_twice(cell: Cell, a_day: int, runs: int, seed: int, days: int = DAYS) -> dict[str, float]:
    """How often harm was shown at any look by the early reading, by the mature one, and by either."""
    rng, spec = np.random.default_rng(seed), plan(rails=(ERROR,))
    looks = np.arange(1, 2 * days + 1) * DAY / 2
    counts = {"early": 0, "mature": 0, "either": 0}
    for _ in range(runs):
        events = {"solved": (nothing, nothing), ERROR.name: cell.events}
        one = simulated(rng, spec, events, a_day, days)
        one = replace(one, phase=replace(one.phase, early=EARLY))
        key = within_key(ERROR.name, EARLY)
        for of in one.events.values():
            of[key] = np.where(of[ERROR.name] <= EARLY, of[ERROR.name], np.inf)
        found = harm_by_reading(one, looks)
        for name in counts:
            counts[name] += found[name] if name in found else any(found.values())
    return {name: count / runs for name, count in counts.items()}


def harm_by_reading(one: Simulated, looks: Array) -> dict[str, bool]:
    """Whether harm was shown at any look, by reading, each with its part of alpha."""
    sources = [one.evidence(float(now)) for now in looks]
    design, sums = sources[0].design, [source.outcomes() for source in sources]
    found = {}
    for name, (rail,) in (("early", design.early), ("mature", design.guardrails)):
        usable = [of for of in sums if min(float(m[rail.metric.name].n) for m in of.values()) >= 2]
        control, arm = (stacked([of[a] for of in usable], rail.metric.name) for a in ARMS)
        plan_of_arm, worse = design.plan_for("new"), -rail.metric.sign
        evidence = ArmPair(rail.metric, control, arm, plan_of_arm).evidence(rail.line, worse)
        found[name] = float(evidence.max()) + math.log(rail.part) >= -math.log(plan_of_arm.alpha)
    return found


def twice_rows(runs: int, rates: Iterable[int] = (250, 2500)) -> Iterator[dict[str, Any]]:
    """A row for each cell and pace: both readings of a guardrail that the server records."""
    for number, cell in enumerate(TWICE_CELLS):
        margin = "margin" in cell.name
        for a_day in rates:
            found = read_twice(cell, a_day, runs, 2000 + number)
            target = LEAST_WITHIN if margin else LEAST_HARM
            alike = cell is not TWICE_CELLS[-1]
            missed = alike and _beyond(found["either"], target, runs)
            yield {
                "errors, control and arm": cell.name,
                "units a day and arm": f"{a_day:,}",
                **{f"harm, {name}, %": f"{100 * rate:.1f}" for name, rate in found.items()},
                "target": f"harm <= {100 * target:g} %" if alike else "none: sooner is what it reads",
                "": "MISSED" if missed else "met" if alike else "",
            }


# --- tables -----------------------------------------------------------------------------------------------

LEAST_WITHIN, LEAST_HARM, FOUND = 0.05, 0.02, 0.8


def _beyond(rate: float, promised: float, runs: int) -> bool:
    """Whether the 95 % interval of what was seen lies above what is promised."""
    return rate - 1.96 * math.sqrt(max(rate * (1 - rate), 1e-12) / runs) > promised


def split_rows(runs: int, rates: Iterable[int] = RATES) -> Iterator[dict[str, Any]]:
    """A row for each cell and pace of a split."""
    for number, cell in enumerate((*WITHIN_CELLS, *HARM_CELLS, *FOUND_CELLS)):
        for a_day in rates:
            found = shown(cell, a_day, runs, 100 * number + 1)
            target = "within <= 5 %" if cell.wrong == "within" else "harm <= 2 %"
            if cell.wrong:
                promised = LEAST_WITHIN if cell.wrong == "within" else LEAST_HARM
                missed = _beyond(found[cell.wrong], promised, runs)
            else:
                target, missed = "harm >= 80 % at 500 a day", a_day >= 500 and found["harm"] < FOUND
            yield {
                "thumbs down, control and arm": cell.name,
                "units a day and arm": f"{a_day:,}",
                "within, %": f"{100 * found['within']:.1f}",
                "harm, %": f"{100 * found['harm']:.1f}",
                "target": target,
                "": "MISSED" if missed else "met",
            }


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether all targets are met."""
    begin = time.process_time()
    splits = list(split_rows(asked.runs))
    twice = list(twice_rows(asked.runs))
    print(report.table(splits), report.table(twice), sep="\n\n")
    missed = [str(row) for row in (*splits, *twice) if row[""] == "MISSED"]
    notes = [
        f"window 7 days, {DAYS} days, guardrail thumbs down with a margin of 5 points; shares of"
        " runs in which it was shown at any look: two a day",
        "MISSED: the 95 % interval of a cell lies on the wrong side of its target",
        f"misses: {'; '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section maturity`: {asked.runs:,} simulated experiments a"
        f" cell, judged by the functions that make a report."
    )
    if not asked.dry:
        tables = {"Early and mature reading together": twice}
        print(
            "written to",
            report.write("experiment-maturity", workload, splits, notes, tables=tables),
        )
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=200, help="experiments a cell of splits")
