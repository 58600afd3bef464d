"""An A/A self-test, what needs no server: are hashes uniform, are verdicts as rarely wrong as they say?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from router.experiments.assignment import Allocation, Arm, Assigned, Salts, fraction
from router.experiments.kind import Kind
from router.experiments.stats import Arms, Metric, Moments, Plan
from router.experiments.stats.moments import Array

RARE = 0.001
"""How rarely a sound part may be called unsound."""
BINS, HASHED, AGAIN, LOOKS = 20, 20_000, 400, 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of the pipeline: sound or not, with its numbers."""

    name: str
    sound: bool
    text: str


def uniform(salt: str, units: int = HASHED) -> Finding:
    """Whether units spread evenly over the fractions that decide their arms: chi-square over equal bins."""
    found = np.array([fraction(salt, f"unit-{i}") for i in range(units)])
    counts = np.bincount((found * BINS).astype(np.int64), minlength=BINS)
    expected = units / BINS
    square = float(((counts - expected) ** 2 / expected).sum())
    p = _chi_square_tail(square, BINS - 1)
    text = f"{units:,} hashed units in {BINS} equal parts: chi-square {square:.1f}, p = {p:.2g}"
    return Finding("uniformity", p > RARE, text)


def _chi_square_tail(square: float, freedom: int) -> float:
    """Wilson and Hilferty 1931: the cube root is nearly normal."""
    spread = 2 / (9 * freedom)
    z = ((square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def error_rate(values: Mapping[str, float], plan: Plan, seed: str, again: int = AGAIN) -> Finding:
    """Units' own outcomes (0 or 1), assigned again and again by fresh salts: how often is a difference shown
    at any of ten looks, where there is none?"""
    outcomes = np.array(list(values.values()), np.float64)
    treated = np.array([_arms(list(values), f"{seed}-{i}") for i in range(again)])
    shown = np.zeros(again, bool)
    for look in range(1, LOOKS + 1):
        until = len(outcomes) * look // LOOKS
        shown |= _evidence(outcomes[:until], treated[:, :until], plan) >= -math.log(plan.alpha)
    wrong, most = int(shown.sum()), _most(again, plan.alpha)
    text = (
        f"{wrong} of {again} assignments anew show a difference ({wrong / again:.1%}) in {LOOKS} looks each;"
        f" {plan.alpha:.0%} is allowed, {most} are too many"
    )
    return Finding("error-rate", wrong < most, text)


def _arms(units: Sequence[str], salt: str) -> Array:
    allocation = Allocation(Salts(f"enrolment-{salt}", f"variant-{salt}"), (Arm("a", 0.5), Arm("b", 0.5)))
    found = (allocation.assign(unit) for unit in units)
    return np.array([isinstance(arm, Assigned) and arm.arm == "b" for arm in found], np.float64)


def _evidence(outcomes: Array, treated: Array, plan: Plan) -> Array:
    """Log evidence of each assignment, [assignments]; none where an arm has under two units."""
    arms = []
    for taken in (1 - treated, treated):
        ones = taken @ outcomes
        arms.append(Moments(taken.sum(axis=1), (ones,), (ones,)))
    if min(float(np.min(arm.n)) for arm in arms) < 2:
        return np.zeros(len(treated))
    metric = Metric("outcome", Kind.PROPORTION)
    return Arms(metric, arms[0], arms[1], plan).evidence()


def _most(trials: int, chance: float) -> int:
    """The least number of wrong ones that a sound test has with a chance below `RARE`."""
    left = 1.0
    for count in range(trials + 1):
        if left < RARE:
            return count
        left -= math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
    return trials + 1
