"""`python -m benchmarks.experiment_errors`: are experiments wrong as rarely as they say, at every split?

No effect at all, a look after every few units, 5 % promised: how often is one called, a guardrail at its
margin said to be within it? How long a verdict takes: `python -m benchmarks.experiment_planned`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.experiment_simulation import (
    LATENCY,
    Array,
    Judged,
    Source,
    alike,
    capped,
    chunks,
    evidence,
    first_looks,
    heavy_past,
    one_arm_times_out,
    proportion,
    rare_past,
    rarely_asked,
    ratio,
    returning,
    revenue,
    skewed,
    timeouts,
)
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.checks import Guardrail
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.moments import ComparedMetric, Moments

SPLITS = (0.5, 0.2, 0.1, 0.05, 0.02)
"""Treatment's share."""
UNITS, EVERY = 5_000, 20
LONG, LONG_EVERY = 40_000, 200
"""For what is only judged after hundreds of units in the smaller arm."""


@dataclass(frozen=True)
class Cell:
    """A row of the table: a source, and what may be called of it at no more than 5 %."""

    name: str
    source: Source
    judged: Callable[[Source, SequencePlan], Judged]
    long: bool = False


def difference(source: Source, plan: SequencePlan) -> Judged:
    """That there is a difference, by effect, p and interval, which are one."""
    return partial(evidence, source.metric, plan=plan)


def within(margin: float, relative: bool = False) -> Callable[[Source, SequencePlan], Judged]:
    """That a guardrail, truly at its margin, is within it."""
    return partial(_guarded, margin, relative, 1)


def beyond(margin: float, relative: bool = False) -> Callable[[Source, SequencePlan], Judged]:
    """That a guardrail, truly at its margin, is beyond it."""
    return partial(_guarded, margin, relative, -1)


def _guarded(margin: float, relative: bool, side: int, source: Source, plan: SequencePlan) -> Judged:
    rail = Guardrail(source.metric, margin, relative)
    return partial(evidence, source.metric, plan=plan, line=rail.line, side=side * source.metric.sign)


def worse(source: Source) -> Source:
    """Of an effect upwards: the metric is one of which less is better."""
    metric = ComparedMetric(source.metric.name, source.metric.kind, higher_is_better=False)
    return Source(source.name, metric, source.control, source.treatment, source.effect, source.variances)


def cells() -> Iterator[Cell]:
    """All of them."""
    for p in (0.005, 0.01, 0.02, 0.03, 0.05, 0.3, 0.99):
        yield Cell(f"proportion {p:g}", proportion(p), difference)
    mean, ratios = ComparedMetric("mean", Kind.MEAN), ComparedMetric("ratio", Kind.RATIO)
    with_past = ComparedMetric("mean", Kind.MEAN, covariate=True)
    for name, source in (
        ("revenue, 2 % of units pay", alike("revenue", mean, revenue)),
        ("latency with 0.5 % timeouts", alike("latency", LATENCY, timeouts)),
        ("log-normal, sigma 1", skewed()),
        ("log-normal, sigma 1.5", skewed(sigma=1.5)),
        ("log-normal, sigma 2", skewed(sigma=2.0)),
        ("ratio, denominator 0 in 95 %", alike("ratio", ratios, rarely_asked)),
        ("ratio, returning users, Zipf", alike("ratio", ratios, returning)),
        ("CUPED, heavy covariate", alike("cuped", with_past, heavy_past)),
        ("CUPED, a past for 5 %", alike("cuped", with_past, rare_past)),
        ("equal means, treatment alone times out", one_arm_times_out()),
        ("equal means, control alone times out", one_arm_times_out(swap=True)),
    ):
        yield Cell(name, source, difference)
        yield Cell(f"{name}, {LONG:,} units", source, difference, long=True)
    yield Cell("latency capped at 5 s", capped(alike("latency", LATENCY, timeouts), 5.0), difference)
    yield Cell("revenue capped at 100", capped(alike("revenue", mean, revenue), 100.0), difference)
    yield from margins()


def margins() -> Iterator[Cell]:
    """Guardrails that are truly at their margin."""
    for name, source, margin, relative in (
        ("error 1 % + 1 point", worse(proportion(0.01, 0.01)), 0.01, False),
        ("error 5 % + 2 points", worse(proportion(0.05, 0.02)), 0.02, False),
        ("error 2 % · 1.5", worse(proportion(0.02, 0.01)), 0.5, True),
        ("mean, log-normal · 1.1", worse(skewed(0.1)), 0.1, True),
        ("ratio + 0.05", worse(ratio(0.05)), 0.05, False),
    ):
        yield Cell(f"guardrail at its margin called within: {name}", source, within(margin, relative))
        yield Cell(f"guardrail at its margin called beyond: {name}", source, beyond(margin, relative))


def called(cell: Cell, share: float, runs: int, seed: int) -> float:
    """Share of runs in which it was called at any look."""
    units, every = (LONG, LONG_EVERY) if cell.long else (UNITS, EVERY)
    plan = SequencePlan(units=units)
    found = first_looks(cell.source, cell.judged(cell.source, plan), runs, units, seed, share, every)
    return float(np.isfinite(found).mean())


def too_often(rate: float, runs: int, promised: float = 0.05) -> bool:
    """Whether the 95 % interval of what was seen lies above what was promised."""
    return rate - 1.96 * np.sqrt(max(rate * (1 - rate), 1e-12) / runs) > promised


# --- several arms, and values that change after they were counted ---------------------------------------


def arms_alike(source: Source, weights: Sequence[float], runs: int, seed: int) -> float:
    """Any of several arms called against the first one, with Holm as it stands: the least p times their
    number."""
    rng, wrong = np.random.default_rng(seed), 0
    treatments = len(weights) - 1
    for count in chunks(runs):
        shape = (count, UNITS)
        arm = rng.choice(len(weights), shape, p=np.asarray(weights) / np.sum(weights))
        drawn = source.control(rng, shape)
        sums = [_sums(drawn, arm == i) for i in range(len(weights))]
        shown = np.zeros(count, bool)
        for i in range(1, len(weights)):
            plan = SequencePlan(units=max(200, round(UNITS * (weights[0] + weights[i]))))
            found = evidence(source.metric, (sums[0], sums[i]), plan)
            shown |= (found >= np.log(20 * treatments)).any(axis=1)
        wrong += int(shown.sum())
    return wrong / runs


def _sums(columns: Sequence[Array], member: Any) -> Moments:
    from benchmarks.experiment_simulation import _cumulative

    return _cumulative(columns, member, EVERY)


def changing(aggregate: str, kind: Kind, share: float, runs: int, seed: int) -> float:
    """Units keep coming, each answers four times over time, and all are looked at all the while: as
    guardrails are, from all units so far (a unit's last value: from those whose window is over)."""
    units, answers, count = 4000, 4, 60
    rng, wrong = np.random.default_rng(seed), 0
    metric = ComparedMetric("value", kind)
    plan = SequencePlan(units=units)
    for _ in range(runs):
        treated = rng.random(units) < share
        begin = np.arange(units)
        times = begin[:, None] + rng.exponential(units / 4, (units, answers)).cumsum(axis=1)
        times[:, 0] = begin
        drawn = (
            rng.random((units, answers)) < 0.1
            if kind is Kind.PROPORTION
            else rng.lognormal(0, 1, (units, answers))
        )
        for now in np.linspace(units / count, units * 3, count):
            mature = aggregate == "LAST"
            came = begin + (units if mature else 0) < now
            value = aggregated(aggregate, drawn.astype(np.float64), times < now)
            both = tuple(Moments.of(value[came & (treated == arm)]) for arm in (False, True))
            if min(arm.n for arm in both) >= 2 and _shown(metric, both, plan):
                wrong += 1
                break
    return wrong / runs


def aggregated(aggregate: str, values: Array, seen: Any) -> Array:
    """One value of each unit, from its answers so far."""
    if aggregate == "SUM":
        return np.where(seen, values, 0).sum(axis=1)
    if aggregate == "MAX":
        return np.where(seen, values, 0).max(axis=1)
    if aggregate == "MEAN":
        return np.where(seen, values, 0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    last = np.maximum(seen.sum(axis=1) - 1, 0)
    return values[np.arange(len(values)), last]


def _shown(metric: ComparedMetric, both: Sequence[Moments], plan: SequencePlan) -> bool:
    from router.extensions.experiments.stats.compare import ArmPair

    return bool(ArmPair(metric, both[0], both[1], plan).evidence() >= np.log(20))


def error_rows(runs: int, only: str = "") -> Iterator[dict[str, Any]]:
    """One row a cell, one column a split, in percent."""
    for number, cell in enumerate(cells()):
        if only in cell.name:
            rates = [called(cell, share, runs, seed=1000 * number + i) for i, share in enumerate(SPLITS)]
            yield _row(cell.name, rates, runs)
    for aggregate in ("SUM", "MAX", "MEAN", "LAST"):
        for kind in (Kind.MEAN, Kind.PROPORTION):
            name = f"{aggregate} of a {kind.value} that changes after it was counted"
            if only in name and not (kind is Kind.PROPORTION and aggregate in ("SUM", "MEAN")):
                few = max(40, runs // 5)
                yield _row(name, [changing(aggregate, kind, s, few, seed=7) for s in SPLITS[:4]], few)


def other_rows(runs: int) -> Iterator[dict[str, Any]]:
    """Several arms."""
    several = {"90/5/5": (0.9, 0.05, 0.05), "98/1/1": (0.98, 0.01, 0.01), "20 arms": (0.05,) * 20}
    mean = ComparedMetric("mean", Kind.MEAN)
    sources = (
        proportion(0.01),
        proportion(0.05),
        proportion(0.3),
        alike("revenue", mean, revenue),
        capped(alike("latency", LATENCY, timeouts), 5.0),
    )
    for seed, source in enumerate(sources):
        for split, weights in several.items():
            yield _one(f"{source.name}, {split}", arms_alike(source, weights, runs, seed), runs)


def _row(name: str, rates: Sequence[float], runs: int) -> dict[str, Any]:
    told = {f"{100 * (1 - s):g}/{100 * s:g}": "-" for s in SPLITS}
    told.update(
        {f"{100 * (1 - s):g}/{100 * s:g}": f"{100 * r:.1f}" for s, r in zip(SPLITS, rates, strict=False)}
    )
    verdict = "TOO OFTEN" if any(too_often(r, runs) for r in rates) else "ok"
    row = {"no effect": name, **told, "runs": runs, "5 % promised": verdict}
    print(row, file=sys.stderr, flush=True)
    return row


def _one(name: str, rate: float, runs: int) -> dict[str, Any]:
    return {
        "no effect": name,
        "called, %": f"{100 * rate:.1f}",
        "runs": runs,
        "5 % promised": "TOO OFTEN" if too_often(rate, runs) else "ok",
    }


def main() -> None:
    """Simulate and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="experiments a cell")
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    asked = parser.parse_args()
    begin = time.process_time()
    rows = list(error_rows(asked.runs, asked.only))
    tables = {}
    if not asked.only:
        tables["Several arms"] = list(other_rows(asked.runs))
    print(report.table(rows), *(report.table(found) for found in tables.values()), sep="\n\n")
    bad = [
        row["no effect"] for found in (rows, *tables.values()) for row in found if "TOO" in str(row.values())
    ]
    notes = [
        "columns are splits of control and treatment; TOO OFTEN: the 95 % interval of a cell lies above 5 %",
        f"called too often: {', '.join(bad) or 'none'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"{asked.runs:,} simulated experiments a cell, {UNITS:,} units with a look every {EVERY}, or {LONG:,}"
        f" with one every {LONG_EVERY}, planned for as many; alpha 0.05; the functions that judge reports."
    )
    if not asked.dry:
        print("written to", report.write("errors", workload, rows, notes, tables=tables, page="experiments"))
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
