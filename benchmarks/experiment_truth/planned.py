"""Section `planned`: do verdicts come when promised, and are they as rarely wrong as promised?

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
from router.experiments.model import Kind
from router.experiments.stats.checks import Guardrail, Maturity, sample_ratio
from router.experiments.stats.compare import ArmPair, SequencePlan
from router.experiments.stats.moments import ComparedMetric, Moments
from router.experiments.stats.planned import Looks, PlannedPair
from router.experiments.stats.planning import fixed_size, hopeless, planned_factors
from router.experiments.stats.sequences import (
    Line,
    one_sided,
    peak_gain,
    planned_bound,
    two_sided_bound,
)
from router.experiments.verdict import ExperimentDesign, PipelineHealth, judge

ALPHA, POWER = 0.05, 0.8
SPLITS = ((0.5, 1.1), (0.1, 1.2))
"""Treatment's share, and by how many fixed sizes 80 % of the experiments must have their verdict."""
PEEKS: Mapping[str, int | None] = {"1 look": 1, "7 looks": 7, "50 looks": 50, "every unit": None}
STEPS, HORIZON = 200, 2.5  # looks in a fixed size, and for how many fixed sizes
ALIKE_UNITS = {False: 2000, True: 8000}  # planned units without an effect; where nothing caps the values
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
NO_EFFECTS = (proportion(0.02), proportion(0.05), proportion(0.5), score(), skewed())


def held_out_effects() -> tuple[Source, ...]:
    """Metrics on which nothing was chosen."""
    return ratio(0.05), ratio(0.03), seconds(0.12), proportion(0.2, 0.03)


def held_out_alike() -> tuple[Source, ...]:
    """The same without an effect, and two rates more."""
    return ratio(), seconds(), proportion(0.1), proportion(0.9)


HELD_OUT_SPLITS = (0.5, 0.3, 0.1, 0.05)


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

    def at(self, which: Any) -> Evidence:
        """Some of the looks."""
        apart, always, by_plan = (x[:, which] for x in (self.apart, self.always, self.by_plan))
        return Evidence(apart, always, by_plan, self.units[which])

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


def spread(units: Array, planned: int, count: int | None) -> Any:
    """Which looks are so many evenly spaced ones, the last at the planned size; None: all."""
    if count is None:
        return slice(None)
    wanted = np.ceil(np.arange(1, count + 1) * planned / count)
    return np.unique(np.searchsorted(units, wanted).clip(max=len(units) - 1))


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


def error_rows(runs: int) -> Iterator[dict[str, Any]]:
    """A row for each metric, split and side without an effect: how often an arm is promoted or
    stopped for harm, in percent, by how often it is looked at until the planned size."""
    cells = [(source, share, "") for source in NO_EFFECTS for share, _ in SPLITS]
    cells += [(source, share, "held out") for source in held_out_alike() for share in HELD_OUT_SPLITS]
    for number, (source, share, cell) in enumerate(cells):
        planned = ALIKE_UNITS[not math.isfinite(sum(source.metric.range))]
        called = {side: dict.fromkeys(PEEKS, 0) for side in (1, -1)}
        for seen in simulated(source, share, runs, planned, planned // 2000, 500 + number):
            whole = evidence_of(seen, planned)
            for peek, count in PEEKS.items():
                kept = whole.at(spread(seen.units, planned, count))
                for side, counts in called.items():
                    counts[peek] += int((kept.better(side) | kept.harm(side)).any(axis=1).sum())
        for side, counts in called.items():
            rates = {peek: count / runs for peek, count in counts.items()}
            yield {
                "no effect": source.name,
                "split": _split(share),
                "cell": cell,
                "better is": "more" if side > 0 else "less",
                "planned units": f"{planned:,}",
                **{f"{peek}, %": f"{100 * rate:.1f}" for peek, rate in rates.items()},
                "5 % promised": "TOO OFTEN" if any(_too_often(r, runs) for r in rates.values()) else "ok",
            }


HORIZONS = (1, 3, 10, 20, 1000)


def past_rows(runs: int, steps: int = 400) -> Iterator[dict[str, Any]]:
    """Brownian motion without drift, looked at until so many times the planned size: how often an arm that is
    equal is promoted or stopped for harm, as a share of the level that is promised."""
    rng = np.random.default_rng(1)
    part = np.concatenate([np.arange(1, steps + 1) / steps, np.geomspace(1, HORIZONS[-1], 700)[1:]])
    roots = np.sqrt(np.diff(part, prepend=0.0))
    counts = {level: np.zeros(len(HORIZONS)) for level in (0.2, 0.05, 0.05 / 3, 0.01)}
    within = np.zeros(len(HORIZONS))
    drawn = 0
    while drawn < runs:
        size = min(2000, runs - drawn)
        z = (rng.standard_normal((size, len(part))) * roots).cumsum(axis=1) / np.sqrt(part)
        for level in counts:
            called = (z >= _boundary(part, level)) | (-z >= _always(part, level))
            counts[level] += [called[:, part <= most + 1e-9].any(axis=1).sum() for most in HORIZONS]
        called = (z >= planned_bound(part, ALPHA)) | (
            one_sided(z, peak_gain(2 * ALPHA) * part) >= -math.log(ALPHA)
        )
        within += [called[:, part <= most + 1e-9].any(axis=1).sum() for most in HORIZONS]
        drawn += size
    for level, found in counts.items():
        yield _past_row("promoted or stopped", level, found / runs, runs)
    yield _past_row("guardrail at its margin called within", ALPHA, within / runs, runs)


def _past_row(rule: str, level: float, rates: Array, runs: int) -> dict[str, Any]:
    return {
        "rule": rule,
        "promised, %": f"{100 * level:.3g}",
        **{f"by {most:g}x, %": f"{100 * rate:.2f}" for most, rate in zip(HORIZONS, rates, strict=True)},
        "by 10x": "TOO OFTEN" if _too_often(float(rates[2]), runs, level) else "ok",
    }


def _always(part: Array, level: float) -> Array:
    return two_sided_bound(peak_gain(level) * part, level)


def _boundary(part: Array, level: float) -> Array:
    """The z at which an arm is shown to be better."""
    return np.minimum(planned_bound(part, level), _always(part, level))


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


def futility_rows(runs: int, count: int = 50) -> Iterator[dict[str, Any]]:
    """What it costs, and spares, to give up at the first of so many looks that advises it."""
    for number, source in enumerate((proportion(0.05, 0.02), skewed(0.15), proportion(0.2, 0.03))):
        fixed, side = fixed_units(source, 0.5), 1
        every = max(1, fixed // STEPS)
        planned = planned_size(fixed, SPLITS[0][1], every)
        for name, true in (("as planned", source), ("none", _alike(source))):
            rows = [
                _with_advice(seen, planned, side, count)
                for seen in simulated(true, 0.5, runs, planned, every, 700 + number)
            ]
            success, obeyed, spent, gave_up = (np.concatenate(column) for column in zip(*rows, strict=True))
            yield {
                "metric": source.name,
                "cell": "held out" if number == 2 else "",
                "true effect": name,
                "promoted, %": f"{100 * success.mean():.1f}",
                "if obeyed, %": f"{100 * obeyed.mean():.1f}",
                "units if obeyed": f"{spent.mean() / fixed:.2f}x",
                "advised, %": f"{100 * gave_up.mean():.1f}",
                "of these promoted otherwise, %": f"{100 * success[gave_up].mean():.1f}"
                if gave_up.any()
                else "-",
            }


def _alike(source: Source) -> Source:
    return replace(source, treatment=source.control, effect=0.0)


def _with_advice(seen: Looked, planned: int, side: int, count: int) -> tuple[NDArray[Any], ...]:
    """Of each experiment: promoted; promoted if the advice is obeyed; units until then; whether it is advised
    before a promotion."""
    which = spread(seen.units, planned, count)
    units, better = seen.units[which], evidence_of(seen, planned).better(side)[:, which]
    pair = PlannedPair(seen.metric, seen.control, seen.treatment, SequencePlan(alpha=ALPHA, units=planned))
    ready, z = pair.ready[:, which], side * pair.z()[:, which]
    advised = np.zeros(better.shape, bool)
    for at_once in np.argwhere(ready):
        place = tuple(at_once)
        advised[place] = hopeless(float(z[place]), float(units[place[1]] / planned), ALPHA)
    success, first, stop = better.any(axis=1), first_shown(units, better), first_shown(units, advised)
    spent = np.minimum(np.minimum(first, stop), planned)
    return success, success & (first <= stop), spent, stop < first


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


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether all targets are met."""
    begin = time.process_time()
    powers, errors = list(power_rows(asked.runs)), list(error_rows(asked.error_runs))
    within, verdicts = list(within_rows(asked.runs)), list(verdict_rows(asked.verdict_runs))
    advice, past = list(futility_rows(asked.runs)), list(past_rows(4 * asked.error_runs))
    tables = {
        "No effect: an arm is promoted or stopped for harm": errors,
        "No effect, and looks that go on: Brownian motion": past,
        "Guardrails at their margin": within,
        "Whole experiments through judge": verdicts,
        "Giving up": advice,
    }
    print(report.table(powers), *map(report.table, tables.values()), sep="\n\n")
    missed = faults([*powers, *errors, *within, *verdicts])
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
        f"`python -m benchmarks.experiment_truth --section planned`: {asked.runs:,} simulated experiments a"
        f" cell with an effect, {STEPS} looks in a fixed size; {asked.error_runs:,} without,"
        f" {asked.verdict_runs:,} through judge; alpha {ALPHA:g}, two-sided."
    )
    if not asked.dry:
        print("written to", report.write("experiment-planned", workload, powers, notes, tables=tables))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=1000, help="experiments a cell with an effect")
    parser.add_argument("--error-runs", type=int, default=4000, help="experiments a cell without one")
    parser.add_argument("--verdict-runs", type=int, default=200, help="experiments a cell through judge")
