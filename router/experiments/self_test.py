"""What an A/A self-test finds: what was sent against what was logged, and what the statistics make of it.

Are hashes uniform, is every outcome counted once, are verdicts as rarely wrong as they say?
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from router.experiments.assignment import Allocation, Arm, Assigned, Salts, fraction
from router.experiments.model import Kind
from router.experiments.stats import Arms, Metric, Moments, Plan
from router.experiments.stats.moments import Array

if TYPE_CHECKING:
    from router.experiments.cli.aa import Traffic
    from router.experiments.model import Phase
    from router.experiments.report.model import ArmNumbers, Report

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


def findings(traffic: Traffic, report: Report, seed: str) -> list[Finding]:
    """All parts, in the order of the pipeline."""
    phase = next(p for p in report.experiment.phases if p.number == report.phase)
    return [
        _requests(traffic),
        _assignment(traffic, phase),
        uniform(phase.variant_salt),
        _logging(traffic, report),
        _outcomes(traffic, report),
        *_ratio(report),
        _rate(traffic, report, seed),
        _verdict(report),
    ]


def _requests(traffic: Traffic) -> Finding:
    answered = sum(map(len, traffic.arms.values()))
    sound = not traffic.errors and not traffic.outside and answered > 0
    text = (
        f"{answered:,} answers in the experiment, {traffic.outside:,} outside, {len(traffic.errors):,} errors"
    )
    if traffic.errors:
        text += f"; the first: {traffic.errors[0]}"
    elif traffic.outside:
        text += "; the route did not get these prompts: give one that it answers with --prompt"
    return Finding("requests", sound, text)


def _assignment(traffic: Traffic, phase: Phase) -> Finding:
    """Every answer's arm is the one that anybody computes from the salts."""
    from router.experiments.assignment import Allocation, Arm, Assigned, Salts

    salts = Salts(phase.enrolment_salt, phase.variant_salt)
    allocation = Allocation(salts, tuple(Arm(arm.name, arm.weight) for arm in phase.spec.arms))
    wrong = 0
    for unit, arms in traffic.arms.items():
        found = allocation.assign(unit)
        wrong += not isinstance(found, Assigned) or set(arms) != {found.arm}
    twice = sum(len(arms) > 1 for arms in traffic.arms.values())
    text = (
        f"{len(traffic.arms) - wrong:,} of {len(traffic.arms):,} units have the arm that the published hash"
        f" gives them; {twice:,} asked twice"
    )
    return Finding("assignment", not wrong and bool(traffic.arms), text)


def _logging(traffic: Traffic, report: Report) -> Finding:
    """Each exposure arrived, and once: units and answers by arm."""

    def of(numbers: ArmNumbers) -> tuple[tuple[int, int], tuple[int, int]]:
        return (
            (numbers.units, traffic.units_of(numbers.arm)),
            (numbers.responses, traffic.answers_of(numbers.arm)),
        )

    pairs = [pair for numbers in report.numbers for pair in of(numbers)]
    told = ", ".join(
        f"{n.arm} {n.units:,} units of {traffic.units_of(n.arm):,}, {n.responses:,} answers of"
        f" {traffic.answers_of(n.arm):,}"
        for n in report.numbers
    )
    return Finding("logging", all(got == sent for got, sent in pairs), f"logged of sent: {told}")


def _outcomes(traffic: Traffic, report: Report) -> Finding:
    """Each outcome counted once, though some were sent twice."""
    metric = report.experiment.spec.primary.name
    pairs = [(n.answered.get(metric, 0), traffic.recorded_in(n.arm)) for n in report.numbers]
    repeated = sum(traffic.repeated.values())
    once = traffic.repeated.get("duplicate", 0) == repeated
    counted = sum(got for got, _ in pairs)
    sent = sum(traffic.recorded.values())
    text = f"{counted:,} counted of {sent:,} sent; {repeated:,} sent twice, "
    text += "each counted once" if once else f"told as {dict(traffic.repeated)}"
    return Finding("outcomes", once and all(got == wanted for got, wanted in pairs), text)


def _ratio(report: Report) -> Iterator[Finding]:
    for check in report.checks:
        if check.name != "maturity":
            yield Finding(check.name, not check.failed, check.text)


def _rate(traffic: Traffic, report: Report, seed: str) -> Finding:
    from router.experiments.report.source import plan_of

    return error_rate(traffic.values, plan_of(report.experiment.spec), seed)


def _verdict(report: Report) -> Finding:
    """Equal arms should be undecided. Now and then they are not, as often as the level says."""
    verdict, alpha = report.verdict, report.experiment.spec.alpha
    p = min((arm.adjusted_p for arm in report.arms), default=1.0)
    text = f"{verdict.decision} ({verdict.rule}), p = {p:.2g} for a difference"
    if verdict.decision != "undecided":
        text += f"; arms are equal, and {alpha:.0%} of sound tests say so all the same: run it again"
    return Finding("verdict", verdict.decision == "undecided" or p > RARE, text)
