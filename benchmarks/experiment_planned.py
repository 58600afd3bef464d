"""`python -m benchmarks.experiment_planned`: do verdicts come when promised, and are they as rarely wrong?

By the evidence that verdicts rest on, and by `judge` itself. Numbers that are set (by how many fixed sizes an
experiment is planned, when to give up) were chosen on the cells that are not marked `held out`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.experiment_simulation import (
    Array,
    Source,
    capped,
    chunks,
    evidence,
    looks,
    proportion,
    ratio,
    skewed,
)
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.checks import Guardrail, Maturity, sample_ratio
from router.extensions.experiments.stats.compare import ArmPair, SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.stats.planned import Looks, PlannedPair
from router.extensions.experiments.stats.planning import fixed_size, planned_factors
from router.extensions.experiments.stats.sequences import (
    Line,
)
from router.extensions.experiments.verdict import ExperimentDesign, PipelineHealth, judge

ALPHA, POWER = 0.05, 0.8
SPLITS = ((0.5, 1.1), (0.1, 1.2))
"""Treatment's share, and by how many fixed sizes 80 % of the experiments must have their verdict."""
STEPS, HORIZON = 200, 2.5  # looks in a fixed size, and for how many fixed sizes
Booleans = NDArray[np.bool_]


def score(effect: float = 0.0) -> Source:
    """A grade within 0 and 1 around one half, as judges give it."""

    def arm(shift: float) -> Callable[[np.random.Generator, tuple[int, ...]], tuple[Array, ...]]:
        return lambda rng, shape: (rng.beta(4 * (0.5 + shift), 4 * (0.5 - shift), shape),)

    variances = (0.05, (0.25 - effect**2) / 5)
    metric = ComparedMetric("score", Kind.MEAN, bounds=(0.0, 1.0))
    return Source(
        f"score 0.5{f' {effect:+g}' if effect else ''}", metric, arm(0), arm(effect), effect, variances
    )


def seconds(effect: float = 0.0) -> Source:
    """Log-normal seconds that are capped at three times their mean; effect and variances as drawn once."""
    source = capped(skewed(effect), 3.0)
    rng = np.random.default_rng(99)
    drawn = [draw(rng, (4_000_000,))[0] for draw in (source.control, source.treatment)]
    variances = (float(drawn[0].var()), float(drawn[1].var()))
    return replace(
        source, effect=float(drawn[1].mean() - drawn[0].mean()) if effect else 0.0, variances=variances
    )


EFFECTS = (
    proportion(0.05, 0.02),
    proportion(0.5, 0.06),
    proportion(0.03, -0.02),
    proportion(0.01, 0.01),
    score(0.03),
    skewed(0.15),
    skewed(-0.15),
)


def held_out_effects() -> tuple[Source, ...]:
    """Metrics on which nothing was chosen."""
    return ratio(0.05), ratio(0.03), seconds(0.12), proportion(0.2, 0.03)


@dataclass(frozen=True, slots=True)
class Looked:
    """Many experiments at many looks: both arms' sums [experiments, looks], where both have two units, and
    `units` [looks] of both arms."""

    metric: ComparedMetric
    control: Moments
    treatment: Moments
    units: Array


@dataclass(frozen=True, slots=True)
class Evidence:
    """What `judge` takes of many experiments at many looks [experiments, looks]: the difference, and log
    evidence of the always-valid sequence and of the planned bound. `units` [looks] of both arms."""

    apart: Array
    always: Array
    by_plan: Array
    units: Array

    def better(self, side: int) -> Booleans:
        """Whether an arm is shown to be better at each look; `side` is the sign of what is better."""
        level, right = -math.log(ALPHA), side * self.apart > 0
        by_plan = np.logical_or.accumulate((self.by_plan >= level) & right, axis=-1)
        return np.asarray(((self.always >= level) | by_plan) & right)

    def harm(self, side: int) -> Booleans:
        """Whether an arm is shown to do harm at each look."""
        return np.asarray((self.always >= -math.log(ALPHA)) & (side * self.apart < 0))


def evidence_of(seen: Looked, planned: int) -> Evidence:
    """With so many planned units."""
    both, plan = (seen.control, seen.treatment), SequencePlan(alpha=ALPHA, units=planned)
    return Evidence(
        np.asarray(ArmPair(seen.metric, *both, plan).difference()),
        evidence(seen.metric, both, plan),
        PlannedPair(seen.metric, *both, plan).evidence(),
        seen.units,
    )


def planned_size(fixed: int, target: float, every: int) -> int:
    """Units for which an experiment is planned: the target, down to a whole number of looks."""
    return max(200, int(target * fixed) // every * every)


def simulated(source: Source, share: float, runs: int, units: int, every: int, seed: int) -> Iterator[Looked]:
    """Experiments in pieces, looked at after `every` units, up to so many units of both arms."""
    rng = np.random.default_rng(seed)
    for count in chunks(runs):
        control, treatment = looks(source, rng, count, units, share, every)
        usable = np.minimum(control.n, treatment.n) >= 2
        for column in range(1, source.metric.columns, 2) if source.metric.kind is Kind.RATIO else ():
            usable = (
                usable & (np.asarray(control.sums[column]) > 0) & (np.asarray(treatment.sums[column]) > 0)
            )
        begin = int(usable.all(axis=0).argmax())
        ends = np.asarray((np.arange(begin, units // every) + 1.0) * every, np.float64)
        yield Looked(source.metric, at(control, slice(begin, None)), at(treatment, slice(begin, None)), ends)


def at(sums: Moments, which: Any) -> Moments:
    """Some of the looks [experiments, looks]."""

    def cut(values: Sequence[Any]) -> tuple[Array, ...]:
        return tuple(np.asarray(x)[:, which] for x in values)

    return Moments(np.asarray(sums.n)[:, which], cut(sums.sums), cut(sums.products), cut(sums.cubes))


def first_shown(units: Array, better: Booleans) -> Array:
    """Units of both arms at the first look that shows a difference; else infinite."""
    return np.where(better.any(axis=1), units[better.argmax(axis=1)], np.inf)


# --- tables -----------------------------------------------------------------------------------------------


def fixed_units(source: Source, share: float) -> int:
    """Units of both arms for one look at the end with 80 % power."""
    null = None
    if source.metric.kind is Kind.PROPORTION:
        control, treatment = source.variances
        p = (1 - math.sqrt(1 - 4 * control)) / 2
        if abs((p + source.effect) * (1 - p - source.effect) - treatment) > 1e-9:
            p = 1 - p
        middle = p + share * source.effect
        null = middle * (1 - middle)
    return fixed_size(source.effect, source.variances, ALPHA, POWER, share, null)


def power_rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each effect and split: power by 1.0, 1.1 and 1.2 of the fixed size."""
    sources = [(source, "") for source in EFFECTS] + [(source, "held out") for source in held_out_effects()]
    for number, (source, cell) in enumerate(sources):
        for share, target in SPLITS:
            yield from _power_of(source, cell, share, target, runs, 100 + number)


def _power_of(
    source: Source, cell: str, share: float, target: float, runs: int, seed: int
) -> Iterator[dict[str, Any]]:
    fixed, side = fixed_units(source, share), 1 if source.effect > 0 else -1
    every = max(1, fixed // STEPS)
    size = planned_size(fixed, target, every)
    pieces = [
        first_shown(seen.units, evidence_of(seen, size).better(side))
        for seen in simulated(source, share, runs, int(HORIZON * fixed), every, seed)
    ]
    times = np.concatenate(pieces) / fixed
    half, most = (_by(float(np.quantile(times, q, method="inverted_cdf"))) for q in (0.5, POWER))
    by = float((times <= target).mean())
    yield {
        "true effect": source.name,
        "split": _split(share),
        "cell": cell,
        "fixed size": f"{fixed:,}",
        "planned": f"{size / fixed:.2f}x",
        **{f"by {part:g}x, %": f"{100 * (times <= part).mean():.1f}" for part in (1.0, 1.1, 1.2)},
        "half by": half,
        "80 % by": most,
        "target": f"{target:g}x: {'met' if _reaches(by, runs) else 'MISSED'}",
    }


def _by(times: float) -> str:
    return f"{times:.2f}x" if math.isfinite(times) else "never"


def _reaches(share: float, runs: int) -> bool:
    """Whether the 95 % interval of what was seen reaches the power that is wanted."""
    return share + 1.96 * math.sqrt(POWER * (1 - POWER) / runs) >= POWER


def within_rows(runs: int, every: int = 10) -> Iterator[dict[str, Any]]:
    """Guardrails that are worse by just their margin: how often they are called within it, in percent."""
    cells = (
        (proportion(0.01, 0.01), ""),
        (proportion(0.05, 0.02), ""),
        (score(-0.02), "held out"),
        (proportion(0.1, 0.02), "held out"),
    )
    for number, (source, cell) in enumerate(cells):
        side = -1 if source.effect > 0 else 1  # the side that is not worse
        for share in (0.5, 0.1):
            counts, planned = np.zeros(2), 4000
            for seen in simulated(source, share, runs, 3 * planned, every, 900 + number):
                both, plan = (seen.control, seen.treatment), SequencePlan(alpha=ALPHA, units=planned)
                line = Line(offset=source.effect)
                near = PlannedPair(seen.metric, *both, plan).evidence(line, side)
                always = evidence(seen.metric, both, plan, line, side)
                called = np.maximum(near, always) >= -math.log(ALPHA)
                counts += [called[:, seen.units <= planned].any(axis=1).sum(), called.any(axis=1).sum()]
            rates = counts / runs
            yield {
                "at its margin": source.name,
                "split": _split(share),
                "cell": cell,
                "by the planned size, %": f"{100 * rates[0]:.1f}",
                "by 3x, %": f"{100 * rates[1]:.1f}",
                "5 % promised": "TOO OFTEN" if _too_often(float(rates[1]), runs) else "ok",
            }


VERDICT_LOOKS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.5)
"""Parts of the planned size at which `judge` is asked."""
STRETCHES = 20  # in a planned size


def verdict_rows(runs: int) -> Iterator[dict[str, Any]]:
    """Whole experiments through `judge`, with guardrail, several arms and margins: how often an arm is
    promoted or stopped at any of eight looks until 1.5 times the planned size, in percent."""
    for number, case in enumerate(VERDICTS):
        found_by_run = [decisions(case, np.random.default_rng((800 + number, run))) for run in range(runs)]
        promoted, stopped = (
            np.mean([name in found for found in found_by_run]) for name in ("promote", "stop for harm")
        )
        by_plan = np.mean([found[:6].count("promote") > 0 for found in found_by_run])
        either = float(
            np.mean([{"promote", "stop for harm"} & set(found) != set() for found in found_by_run])
        )
        wrong = float(either if case.alike else 0.0)
        low = case.alike or _reaches(float(by_plan), runs)
        yield {
            "experiment": case.name,
            "split": "/".join(f"{100 * w:g}" for w in case.weights.values()),
            "cell": case.cell,
            "planned units": f"{case.planned:,}",
            "promoted by the planned size, %": f"{100 * by_plan:.1f}",
            "promoted, %": f"{100 * promoted:.1f}",
            "stopped, %": f"{100 * stopped:.1f}",
            "5 % and 80 % promised": "TOO OFTEN" if _too_often(wrong, runs) else "ok" if low else "MISSED",
        }


@dataclass(frozen=True)
class Whole:
    """An experiment: rates of success of all arms, control's first; errors are 3 % in each, the guardrail's
    margin is 3 points."""

    name: str
    weights: Mapping[str, float]
    rates: tuple[float, ...]
    planned: int
    alike: bool = True
    margin: float = 0.0
    cell: str = ""


TWO, CANARY, THREE = {"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}, {"a": 0.4, "b": 0.3, "c": 0.3}
VERDICTS = (
    Whole("equal", TWO, (0.5, 0.5), 4000),
    Whole("equal", CANARY, (0.1, 0.1), 8000),
    Whole("equal", THREE, (0.5, 0.5, 0.5), 6000),
    Whole("worse by just the margin", TWO, (0.5, 0.46), 4000, margin=0.04, cell="held out"),
    Whole("equal", {"a": 0.7, "b": 0.2, "c": 0.1}, (0.2, 0.2, 0.2), 6000, cell="held out"),
    Whole("+5 points", TWO, (0.5, 0.55), 3441, alike=False),
    Whole("+5 points", CANARY, (0.5, 0.55), 10_437, alike=False, cell="held out"),
    Whole("not worse by 4 points", TWO, (0.5, 0.5), 5399, alike=False, margin=0.04, cell="held out"),
)


def decisions(case: Whole, rng: np.random.Generator) -> list[str]:
    """The verdict at each look."""
    names, stretch = list(case.weights), case.planned // STRETCHES
    count = round(VERDICT_LOOKS[-1] * STRETCHES)
    units = rng.multinomial(stretch, list(case.weights.values()), count).T  # [arms, stretches]
    sums = {
        name: {
            "success": _ones(rng.binomial(units[i], case.rates[i]), units[i]),
            "error": _ones(rng.binomial(units[i], 0.03), units[i]),
        }
        for i, name in enumerate(names)
    }
    error = ComparedMetric("error", Kind.PROPORTION, higher_is_better=False)
    design = ExperimentDesign(
        names[0],
        case.weights,
        ComparedMetric("success", Kind.PROPORTION),
        (Guardrail(error, 0.03),),
        margin=case.margin,
        plan=SequencePlan(alpha=ALPHA, units=stretch * STRETCHES),
    )
    health = PipelineHealth(sample_ratio([1] * len(names), [1 / len(names)] * len(names)), Maturity(1, 1))
    found = []
    for part in VERDICT_LOOKS:
        end = round(part * STRETCHES)
        course = {
            arm: {m: _looks(sums[names[0]][m], sums[arm][m], end) for m in ("success", "error")}
            for arm in names[1:]
        }
        now = {arm: {m: _now(of[m], end) for m in of} for arm, of in sums.items()}
        found.append(str(judge(design, now, health, course=course).verdict.decision))
    return found


def _ones(count: NDArray[np.int64], units: NDArray[np.int64]) -> Moments:
    ones = count.cumsum().astype(np.float64)
    return Moments(units.cumsum().astype(np.float64), (ones,), (ones,))


def _looks(control: Moments, treatment: Moments, end: int) -> Looks:
    first, second = _until(control, end), _until(treatment, end)
    return Looks(first, second, (np.asarray(first.n), np.asarray(second.n)))


def _until(sums: Moments, end: int) -> Moments:
    ones = np.asarray(sums.sums[0])[:end]
    return Moments(np.asarray(sums.n)[:end], (ones,), (ones,))


def _now(sums: Moments, end: int) -> Moments:
    ones = float(np.asarray(sums.sums[0])[end - 1])
    return Moments(int(np.asarray(sums.n)[end - 1]), (ones,), (ones,))


def _too_often(rate: float, runs: int, promised: float = ALPHA) -> bool:
    return rate - 1.96 * math.sqrt(max(rate * (1 - rate), 1e-12) / runs) > promised


def _split(share: float) -> str:
    return f"{100 * (1 - share):g}/{100 * share:g}"


def faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What misses its target, by name."""
    return [
        f"{next(iter(row.values()))} {row['split']}"
        for row in rows
        if any(word in str(row.values()) for word in ("MISSED", "TOO OFTEN"))
    ]


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="experiments a cell with an effect")
    parser.add_argument("--verdict-runs", type=int, default=200, help="experiments a cell through judge")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    asked = parser.parse_args()
    begin = time.process_time()
    powers, within = list(power_rows(asked.runs)), list(within_rows(asked.runs))
    verdicts = list(verdict_rows(asked.verdict_runs))
    tables = {
        "Guardrails at their margin": within,
        "Whole experiments through judge": verdicts,
    }
    print(report.table(powers), *map(report.table, tables.values()), sep="\n\n")
    missed = faults([*powers, *within, *verdicts])
    notes = [
        "an arm is shown to be better by the planned bound or by the always-valid sequence; harm is shown by"
        " the always-valid sequence",
        "column planned: the size that is planned, which is what an experiment without effect spends where it"
        f" ends there; by Brownian motion 80 % need {planned_factors(ALPHA, POWER)[1]:.3f}",
        "an uncapped mean or ratio needs 750 units in the smaller arm before any test: 1,500 at 50/50, 7,500"
        " at 90/10. `experiments plan` counts them; the target does not",
        "MISSED and TOO OFTEN: the 95 % interval of a cell lies on the wrong side of 80 % and of 5 %",
        "held out: nothing was chosen on this cell, and it was first run when all was chosen",
        f"misses: {', '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_planned`: {asked.runs:,} simulated experiments a cell with an"
        f" effect, {STEPS} looks in a fixed size; {asked.verdict_runs:,} through judge; alpha {ALPHA:g},"
        " two-sided."
    )
    if not asked.dry:
        print(report.write("planned-sizes", workload, powers, notes, tables=tables, page="experiments"))
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
