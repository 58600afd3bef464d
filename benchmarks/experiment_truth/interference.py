"""Section `interference`: what does a split say of latency, and what a switchback?

One server has a batch of 16 places. Requests come at random (Poisson), wait for a place in their order, and
keep it while their answer is made. In the new arm answers are 1.6 times as long. In a split both arms wait in
one queue; in a switchback the whole server has one arm for a slice of time.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.experiment_simulation import Array
from router.experiments.stats.permutation import sign_flips

ALPHA, POWER, FOUND = 0.05, 0.8, 0.8
"""Level, power at the planned size, and the share of the roll-out's effect that must be found."""
PLACES = 16
ANSWER = 2.5  # seconds that an answer of control takes, without waiting
LONGER = 1.6
SPREAD = 0.6  # of the logarithm of an answer's length
PREFILL = 0.2  # seconds from the place in the batch to the first token
DAY = 86_400.0
SLICES = 24
WASH_OUT = 0.1
TRUTH = 2 * DAY  # seconds of a roll-out
CHUNK = 512  # requests that are drawn at once
METRICS = ("time_to_first_token", "total_time")


@dataclass(frozen=True, slots=True)
class Load:
    """Share of the places that control keeps busy, on average; it swings by `swing` over a day."""

    name: str
    busy: float
    swing: float = 0.0


EVEN = Load("60 % busy, even", 0.6)
LOADS = (EVEN, Load("55 % busy, day and night differ by 15 %", 0.55, 0.075))
EQUAL = (EVEN, Load("90 % busy, even", 0.9), Load("60 % busy, day and night differ by 60 %", 0.6, 0.3))


@dataclass(frozen=True, slots=True)
class Cells:
    """Sums over the requests of each cell, [runs, cells]: a slice, or an arm of a split. `totals` are
    by metric."""

    count: Array
    totals: dict[str, Array]

    def means(self, metric: str) -> Array:
        """The mean of each cell."""
        return np.asarray(self.totals[metric] / np.maximum(self.count, 1))


def served(
    load: Load, seconds: float, longer: NDArray[np.float64], runs: int, seed: int, split: bool = False
) -> Cells:
    """A queue in `runs` experiments at once, for so many seconds.

    `longer` [runs, cells] is by how much answers are longer in each slice of equal length; what comes in its
    wash-out is in no sum. With `split` the cells are arms, and each request gets one at random.
    """
    rng, cells = np.random.default_rng(seed), longer.shape[1]
    slot, rate = seconds / cells, load.busy * PLACES / ANSWER
    free, now, each = np.zeros((runs, PLACES)), np.zeros(runs), np.arange(runs)
    sums = np.zeros((3, runs * cells))
    while (now < seconds).any():
        gaps = rng.standard_exponential((CHUNK, runs)) / rate
        lengths = ANSWER * np.exp(SPREAD * rng.standard_normal((CHUNK, runs)) - SPREAD**2 / 2)
        arms = rng.integers(0, cells, (CHUNK, runs)) if split else np.zeros((CHUNK, runs), np.int64)
        at, waits = np.empty((CHUNK, runs)), np.empty((CHUNK, runs))
        for i in range(CHUNK):
            pace = 1 + load.swing * np.sin(2 * np.pi * now / DAY) if load.swing else 1.0
            now = now + gaps[i] / pace
            if not split:
                arms[i] = np.minimum((now / slot).astype(np.int64), cells - 1)
            lengths[i] *= longer[each, arms[i]]
            seat = free.argmin(axis=1)
            begin = np.maximum(now, free[each, seat])
            free[each, seat] = begin + lengths[i]
            at[i], waits[i] = now, begin - now
        kept = (at < seconds) & (split | (at - arms * slot >= WASH_OUT * slot))
        cell = (arms + each * cells)[kept]
        first = waits[kept] + PREFILL
        for row, weights in enumerate((np.ones(len(cell)), first, waits[kept] + lengths[kept])):
            sums[row] += np.bincount(cell, weights=weights, minlength=runs * cells)
    count, *totals = (row.reshape(runs, cells) for row in sums)
    return Cells(count, dict(zip(METRICS, totals, strict=True)))


def rolled_out(load: Load, seconds: float, runs: int = 16) -> dict[str, tuple[float, float]]:
    """Each metric with control alone and with the new arm alone: what a roll-out does."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for factor in (1.0, LONGER):
        cells = served(load, seconds, np.full((runs, 1), factor), runs, 7)
        for name in METRICS:
            found[name].append(float(cells.totals[name].sum() / cells.count.sum()))
    return {name: (values[0], values[1]) for name, values in found.items()}


def switchback(
    load: Load, slot: float, slices: int, factor: float, runs: int, seed: int
) -> dict[str, tuple[Array, Array]]:
    """By metric: the estimate and p of each run."""
    rng = np.random.default_rng(seed)
    second = rng.integers(0, 2, (runs, slices // 2))  # whether the new arm is the second of its pair
    treated = np.stack([1 - second, second], axis=2).reshape(runs, slices)
    longer = np.where(treated == 1, factor, 1.0)
    cells = served(load, slot * slices, longer, runs, seed + 1)
    found = {}
    for name in METRICS:
        means = cells.means(name)
        signed = np.where(treated == 1, means, -means)
        differences = signed.reshape(runs, slices // 2, 2).sum(axis=2)
        shifts = [sign_flips(row, ALPHA) for row in differences]
        found[name] = np.array([s.effect for s in shifts]), np.array([s.p for s in shifts])
    return found


def split_rows(hours: float, runs: int) -> Iterator[dict[str, Any]]:
    """What a split says."""
    for load in LOADS:
        truth = rolled_out(load, TRUTH)
        cells = served(load, hours * 3600, np.array([[1.0, LONGER]] * runs), runs, 11, split=True)
        for name in METRICS:
            old, new = cells.means(name).T
            real = truth[name][1] - truth[name][0]
            yield {
                "load": load.name,
                "metric": name,
                "control alone, s": f"{truth[name][0]:.2f}",
                "new arm alone, s": f"{truth[name][1]:.2f}",
                "split: control, s": f"{old.mean():.2f}",
                "split: new arm, s": f"{new.mean():.2f}",
                "split finds of the effect, %": f"{100 * (new - old).mean() / real:.1f}",
                "within 10 %, % of runs": f"{100 * (new <= 1.1 * old).mean():.0f}",
            }


def power_rows(hours: tuple[float, ...], slices: int, runs: int) -> Iterator[dict[str, Any]]:
    """What a switchback finds of the effect."""
    for load in LOADS:
        truth = rolled_out(load, TRUTH)
        for length in hours:
            found = switchback(load, length * 3600, slices, LONGER, runs, round(1000 * length))
            for name, (effects, p) in found.items():
                real = truth[name][1] - truth[name][0]
                share, power = effects.mean() / real, (p <= ALPHA).mean()
                yield {
                    "load": load.name,
                    "slice, hours": f"{length:g}",
                    "metric": name,
                    "roll-out, s": f"{real:.2f}",
                    "switchback finds, s": f"{effects.mean():.2f}",
                    "of the effect, %": f"{100 * share:.0f}",
                    "shown, % of runs": f"{100 * power:.1f}",
                    "80 % of both": "ok" if share >= FOUND and power >= POWER else "MISSED",
                }


def error_rows(hours: tuple[float, ...], slices: int, runs: int) -> Iterator[dict[str, Any]]:
    """How often a switchback shows an effect where there is none."""
    for load in EQUAL:
        for length in hours:
            found = switchback(load, length * 3600, slices, 1.0, runs, 31 + round(1000 * length))
            for name, (_, p) in found.items():
                rate = (p <= ALPHA).mean()
                yield {
                    "load": load.name,
                    "slice, hours": f"{length:g}",
                    "metric": name,
                    "shown, % of runs": f"{100 * rate:.1f}",
                    "5 % promised": "TOO OFTEN" if rate - 1.96 * math.sqrt(rate / runs) > ALPHA else "ok",
                }


def run(asked: argparse.Namespace) -> bool:
    """Simulate, print and write; whether the switchback meets its targets at its longest slices."""
    begin, hours = time.process_time(), tuple(asked.hours)
    splits = list(split_rows(6.0, asked.runs))
    powers = list(power_rows(hours, asked.slices, asked.runs))
    errors = list(error_rows(hours[:1], asked.slices, asked.runs * 2))
    print(report.table(splits), report.table(powers), report.table(errors), sep="\n\n")
    longest = [row for row in powers if row["slice, hours"] == f"{max(hours):g}"]
    missed = [row for row in (*longest, *errors) if {"MISSED", "TOO OFTEN"} & set(row.values())]
    notes = [
        f"one server, {PLACES} places, answers of {ANSWER:g} s (log-normal, sigma {SPREAD:g}), first token"
        f" {PREFILL:g} s after the place; in the new arm answers take {LONGER:g} times as long",
        f"switchback: {asked.slices} slices in pairs, the first {WASH_OUT:.0%} of each left out,"
        f" sign-flip test of the pairs at {ALPHA:g}, one look",
        "a slice must be long against the time in which the queue fills: short ones find less of the effect",
        f"misses: {len(missed) or 'none'}",
        f"processor time {time.process_time() - begin:.0f} s",
    ]
    print(*notes, sep="\n")
    workload = (
        f"`python -m benchmarks.experiment_truth --section interference`: {asked.runs:,} simulated"
        f" experiments a cell with an effect, {2 * asked.runs:,} without."
    )
    if not asked.dry:
        tables = {"A switchback": powers, "A switchback without an effect": errors}
        print("written to", report.write("experiment-interference", workload, splits, notes, tables=tables))
    return not missed


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this section may be asked."""
    parser.add_argument("--runs", type=int, default=200, help="experiments a cell with an effect")
    parser.add_argument("--slices", type=int, default=SLICES, help="planned slices")
    parser.add_argument("--hours", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="lengths of a slice")
