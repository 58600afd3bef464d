"""Section `planned`: do verdicts come when promised?

It compares three designs on the same simulated units. `open` is the always-valid sequence of
today. `planned` is continuous O'Brien-Fleming until the planned number of units, and ends there. `hybrid`
gives nine tenths of alpha to the second and one tenth to the first, and does not end.
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
from benchmarks.experiment_simulation import Array, Source, chunks, looks, proportion, skewed
from router.experiments.model import Kind
from router.experiments.stats.compare import ArmPair, SequencePlan
from router.experiments.stats.moments import ComparedMetric
from router.experiments.stats.planned import PlannedPair
from router.experiments.stats.planning import fixed_size, planned_factors, sequence_factors
from router.experiments.stats.sequences import peak_gain, planned_bound, two_sided_bound

ALPHA, POWER = 0.05, 0.8
OPEN_PART = 0.1
"""Share of alpha that the always-valid sequence has in `hybrid`."""
SPLITS = ((0.5, 1.1), (0.1, 1.2))
"""Treatment's share, and by how many fixed sizes 80 % of the experiments must have their verdict."""
PEEKS: Mapping[str, int | None] = {"1 look": 1, "7 looks": 7, "50 looks": 50, "every unit": None}
STEPS, HORIZON = 200, 2.5  # looks in a fixed size, and for how many fixed sizes
ALIKE_UNITS = {False: 2000, True: 8000}  # planned units without an effect; where nothing caps the values


def score(effect: float = 0.0) -> Source:
    """A grade within 0 and 1 around one half, as judges give it."""

    def arm(shift: float) -> Callable[[np.random.Generator, tuple[int, ...]], tuple[Array, ...]]:
        return lambda rng, shape: (rng.beta(4 * (0.5 + shift), 4 * (0.5 - shift), shape),)

    variances = (0.05, (0.25 - effect**2) / 5)
    metric = ComparedMetric("score", Kind.MEAN, bounds=(0.0, 1.0))
    return Source(
        f"score 0.5{f' {effect:+g}' if effect else ''}", metric, arm(0), arm(effect), effect, variances
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


@dataclass(frozen=True, slots=True)
class Looked:
    """Many experiments at many looks. `z` and `planned_z` [experiments, looks]: the difference in standard
    errors, 0 where the asymptotic tests may not begin yet. `units` [looks]: of both arms."""

    z: Array
    planned_z: Array
    units: Array


Shown = Callable[[Looked, int], NDArray[np.bool_]]
"""Whether a difference is shown at each look [experiments, looks], with so many planned units."""


def open_design(seen: Looked, planned: int) -> NDArray[np.bool_]:
    """The always-valid sequence, whole alpha."""
    return _always_valid(seen, planned, ALPHA)


def planned_design(seen: Looked, planned: int) -> NDArray[np.bool_]:
    """Continuous O'Brien-Fleming that ends at the planned size."""
    return np.asarray(np.abs(seen.planned_z) >= planned_bound(seen.units / planned, ALPHA))


def hybrid_design(seen: Looked, planned: int) -> NDArray[np.bool_]:
    """Continuous O'Brien-Fleming beside an always-valid sequence that goes on."""
    until = np.abs(seen.planned_z) >= planned_bound(seen.units / planned, ALPHA * (1 - OPEN_PART))
    return np.asarray(until | _always_valid(seen, planned, ALPHA * OPEN_PART))


def _always_valid(seen: Looked, planned: int, alpha: float) -> NDArray[np.bool_]:
    gain = peak_gain(alpha) * seen.units / planned
    return np.asarray(np.abs(seen.z) >= two_sided_bound(gain, alpha))


DESIGNS: Mapping[str, Shown] = {"open": open_design, "planned": planned_design, "hybrid": hybrid_design}


def planned_size(design: str, fixed: int, target: float, every: int) -> int:
    """Units for which a design is planned: what the always-valid one needs for 80 % power, for the others
    the target, down to a whole number of looks."""
    size = sequence_factors(ALPHA, ALPHA, POWER, 1.0)[1] if design == "open" else target
    return int(size * fixed) // every * every


def simulated(source: Source, share: float, runs: int, units: int, every: int, seed: int) -> Iterator[Looked]:
    """Experiments in pieces, looked at after `every` units, up to so many units of both arms."""
    rng = np.random.default_rng(seed)
    for count in chunks(runs):
        control, treatment = looks(source, rng, count, units, share, every)
        usable = np.minimum(control.n, treatment.n) >= 2
        begin = int(usable.all(axis=0).argmax())
        both = tuple(
            replace(
                arm,
                n=np.asarray(arm.n)[:, begin:],
                sums=tuple(np.asarray(x)[:, begin:] for x in arm.sums),
                products=tuple(np.asarray(x)[:, begin:] for x in arm.products),
                cubes=tuple(np.asarray(x)[:, begin:] for x in arm.cubes),
            )
            for arm in (control, treatment)
        )
        given = (source.metric, *both, SequencePlan(alpha=ALPHA, units=max(200, units)))
        pair, until = ArmPair(*given), PlannedPair(*given)
        with np.errstate(divide="ignore", invalid="ignore"):
            z, planned_z = (np.where(pair.ready, found, 0.0) for found in (pair.z(), until.z()))
        yield Looked(z, planned_z, (np.arange(begin, units // every) + 1.0) * every)


def first_shown(seen: Looked, shown: NDArray[np.bool_]) -> Array:
    """Units of both arms at the first look that shows a difference; else infinite."""
    return np.where(shown.any(axis=1), seen.units[shown.argmax(axis=1)], np.inf)


def at_looks(seen: Looked, planned: int, count: int | None) -> Looked:
    """The same, seen at so many evenly spaced looks, the last at the planned size; None: at every one."""
    if count is None:
        return seen
    wanted = np.ceil(np.arange(1, count + 1) * planned / count)
    at = np.unique(np.searchsorted(seen.units, wanted).clip(max=len(seen.units) - 1))
    return Looked(seen.z[:, at], seen.planned_z[:, at], seen.units[at])


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
    """A row for each effect, split and design: power by 1.0, 1.1 and 1.2 of the fixed size."""
    for number, source in enumerate(EFFECTS):
        for share, target in SPLITS:
            fixed = fixed_units(source, share)
            every = max(1, fixed // STEPS)
            sizes = {name: planned_size(name, fixed, target, every) for name in DESIGNS}
            found: dict[str, list[Array]] = {name: [] for name in DESIGNS}
            for seen in simulated(source, share, runs, int(HORIZON * fixed), every, 100 + number):
                for name, shown in DESIGNS.items():
                    found[name].append(first_shown(seen, shown(seen, sizes[name])))
            for name, pieces in found.items():
                times = np.concatenate(pieces) / fixed
                half, most = (_by(float(np.quantile(times, q, method="inverted_cdf"))) for q in (0.5, POWER))
                by = float((times <= target).mean())
                yield {
                    "true effect": source.name,
                    "split": _split(share),
                    "fixed size": f"{fixed:,}",
                    "design": name,
                    "planned": f"{sizes[name] / fixed:.2f}x",
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
    """A row for each metric, split and design without an effect: how often a difference is shown, in
    percent, by how often it is looked at until the planned size."""
    for number, source in enumerate(NO_EFFECTS):
        for share, _ in SPLITS:
            planned = ALIKE_UNITS[not math.isfinite(sum(source.metric.range))]
            every = planned // 2000
            called = {name: dict.fromkeys(PEEKS, 0) for name in DESIGNS}
            for seen in simulated(source, share, runs, planned, every, 500 + number):
                for peek, count in PEEKS.items():
                    kept = at_looks(seen, planned, count)
                    for name, shown in DESIGNS.items():
                        called[name][peek] += int(shown(kept, planned).any(axis=1).sum())
            for name, counts in called.items():
                rates = {peek: count / runs for peek, count in counts.items()}
                yield {
                    "no effect": source.name,
                    "split": _split(share),
                    "planned units": f"{planned:,}",
                    "design": name,
                    **{f"{peek}, %": f"{100 * rate:.1f}" for peek, rate in rates.items()},
                    "5 % promised": "TOO OFTEN" if any(_too_often(r, runs) for r in rates.values()) else "ok",
                }


def past_rows(runs: int, steps: int = 500, until: float = 20.0) -> Iterator[dict[str, Any]]:
    """Brownian motion without drift, looked at to 20 times the planned size: how often arms that are equal
    are promoted (shown to be better) and stopped for harm, by rules for either, in percent."""
    rng = np.random.default_rng(1)
    later = np.geomspace(1, until, 301)[1:]
    part = np.concatenate([np.arange(1, steps + 1) / steps, later])
    roots = np.sqrt(np.diff(part, prepend=0.0))
    always, until_plan = two_sided_bound(peak_gain(ALPHA) * part, ALPHA), planned_bound(part, ALPHA)
    less = ALPHA * OPEN_PART
    hybrid = np.minimum(planned_bound(part, ALPHA - less), two_sided_bound(peak_gain(less) * part, less))
    then = np.where(part > 1, always, until_plan)
    rules: dict[str, tuple[Array, Array]] = {
        "open, open": (always, always),
        "planned, planned": (until_plan, until_plan),
        "planned and then open, the same": (then, then),
        "planned and then open, open": (then, always),
        "planned or open, open": (np.minimum(until_plan, always), always),
        "hybrid, hybrid": (hybrid, hybrid),
    }
    counts = {name: np.zeros(3) for name in rules}
    drawn = 0
    while drawn < runs:
        size = min(2000, runs - drawn)
        z = (rng.standard_normal((size, len(part))) * roots).cumsum(axis=1) / np.sqrt(part)
        for name, (better, worse) in rules.items():
            promoted, stopped = (z >= better).any(axis=1), (-z >= worse).any(axis=1)
            counts[name] += promoted.sum(), stopped.sum(), (promoted | stopped).sum()
        drawn += size
    for name, found in counts.items():
        better, worse, either = found / runs
        yield {
            "rule for promotion, for harm": name,
            "promoted, %": f"{100 * better:.1f}",
            "stopped for harm, %": f"{100 * worse:.1f}",
            "either, %": f"{100 * either:.1f}",
            "5 % promised": "TOO OFTEN" if _too_often(either, runs) else "ok",
        }


def _too_often(rate: float, runs: int) -> bool:
    return rate - 1.96 * math.sqrt(max(rate * (1 - rate), 1e-12) / runs) > ALPHA


def _split(share: float) -> str:
    return f"{100 * (1 - share):g}/{100 * share:g}"


def faults(rows: Sequence[Mapping[str, Any]], designs: Sequence[str]) -> list[str]:
    """What misses its target in one of these designs, by name."""
    return [
        f"{next(iter(row.values()))} {row['split']} {row['design']}"
        for row in rows
        if row["design"] in designs and any(word in str(row.values()) for word in ("MISSED", "TOO OFTEN"))
    ]


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write the three designs; whether `--design` meets all targets."""
    begin = time.process_time()
    powers, errors = list(power_rows(asked.runs)), list(error_rows(asked.error_runs))
    past = list(past_rows(2 * asked.error_runs))
    print(report.table(powers), report.table(errors), report.table(past), sep="\n\n")
    missed = faults([*powers, *errors], [asked.design])
    notes = [
        "open: always valid, as experiments are judged today, with the whole of alpha and without the exact"
        " sequence; planned: continuous O'Brien-Fleming that ends at the planned size; hybrid:"
        f" {1 - OPEN_PART:g} of alpha for the second, {OPEN_PART:g} for an always-valid one that goes on",
        "column planned: the size that a design is given, which is what an experiment without effect spends"
        f" where it ends there; by Brownian motion 80 % need {planned_factors(ALPHA, POWER)[1]:.3f} with"
        f" planned, {planned_factors(ALPHA * (1 - OPEN_PART), POWER, ALPHA)[1]:.3f} with hybrid",
        "an uncapped mean needs 750 units in the smaller arm before any test: 7,500 at 90/10",
        "MISSED and TOO OFTEN: the 95 % interval of a cell lies on the wrong side of 80 % and of 5 %",
        f"{asked.design} misses: {', '.join(missed) or 'nothing'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section planned`: {asked.runs:,} simulated experiments a"
        f" cell with an effect, {STEPS} looks in a fixed size; {asked.error_runs:,} without;"
        f" alpha {ALPHA:g}, two-sided; the z and the conditions that judge reports."
    )
    if not asked.dry:
        tables = {
            "No effect: a difference is shown": errors,
            "No effect, looked at to 20 times the planned size: Brownian motion": past,
        }
        print("written to", report.write("experiment-planned", workload, powers, notes, tables=tables))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--design", choices=DESIGNS, default="planned", help="whose misses are a failure")
    parser.add_argument("--runs", type=int, default=2000, help="experiments a cell with an effect")
    parser.add_argument("--error-runs", type=int, default=10_000, help="experiments a cell without one")
