"""What an A/A self-test finds: what was sent against what was logged, and what the statistics make of it.

Has every unit its arm, is every outcome counted once, are verdicts as rarely wrong as they say? The error
rate is of outcomes that are drawn anew.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.extensions.experiments.assignment import Assigned, AssignmentSalts, UnitAllocation, WeightedArm
from router.extensions.experiments.report.source import design_of
from router.extensions.experiments.stats.compare import ArmPair
from router.extensions.experiments.stats.moments import Moments
from router.extensions.experiments.verdict import ExperimentDesign

if TYPE_CHECKING:
    from router.extensions.experiments.model import ExperimentPhase
    from router.extensions.experiments.report.model import Report

RATE = 0.5  # of the outcomes, in all arms
RARE = 0.001
"""How rarely a sound part may be called unsound."""
AGAIN, LOOKS = 400, 10


@dataclass(slots=True)
class Traffic:
    """What was sent and what came back. `arms`: unit to its answers' arms; `recorded`: units that
    have an outcome."""

    arms: dict[str, list[str]] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)
    repeated: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    errors: list[str] = field(default_factory=list)

    def units_of(self, arm: str) -> set[str]:
        """Units whose first answer was the arm's."""
        return {unit for unit, found in self.arms.items() if found[0] == arm}

    def answers_of(self, arm: str) -> int:
        """Answers of an arm."""
        return sum(found.count(arm) for found in self.arms.values())


@dataclass(frozen=True, slots=True)
class AAFinding:
    """One part of the pipeline: sound or not, with its numbers."""

    name: str
    sound: bool
    text: str


def findings(traffic: Traffic, report: Report, seed: int) -> list[AAFinding]:
    """All parts, in the order of the pipeline."""
    phase, spec = report.experiment.phases[-1], report.experiment.spec
    return [
        _request_finding(traffic),
        _assignment_finding(traffic, phase),
        _logging_finding(traffic, report),
        _outcome_finding(traffic, report),
        *_check_findings(report),
        error_rate(design_of(spec), spec.planned_units, seed),
        _verdict_finding(report),
    ]


def error_rate(design: ExperimentDesign, units: int, seed: int, again: int = AGAIN) -> AAFinding:
    """Units of a proportion, assigned again and again by the plan's weights: how often is any arm shown to
    differ from control at any of ten looks, where none does? Several arms share the level (Holm)."""
    dice = np.random.default_rng(seed)
    solved, names = dice.random(units) < RATE, list(design.weights)
    arms = dice.choice(len(names), (again, units), p=list(design.weights.values()))
    shown = np.zeros(again, bool)
    for end in (units * look // LOOKS for look in range(1, LOOKS + 1)):
        here = [arms[:, :end] == i for i in range(len(names))]
        sums = {
            name: (of.sum(axis=1).astype(np.float64), (of & solved[:end]).sum(axis=1).astype(np.float64))
            for name, of in zip(names, here, strict=True)
        }
        shown |= any_shown(design, sums)
    alpha, wrong = design.plan.alpha, int(shown.sum())
    most = too_many(again, alpha)
    several = f", {len(design.treatments)} arms against {design.control}" if len(names) > 2 else ""
    text = (
        f"{wrong} of {again} assignments of {units:,} units anew show a difference ({wrong / again:.1%}) in"
        f" {LOOKS} looks each{several}; {alpha:.0%} is allowed, {most} are too many"
    )
    return AAFinding("error-rate", wrong < most, text)


Sums = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # arm -> units and ones, [assignments]


def any_shown(design: ExperimentDesign, sums: Sums) -> NDArray[np.bool_]:
    """[assignments]: the smallest p of all arms, times their number, is within the level. An arm under two
    units shows nothing."""
    level = -math.log(design.plan.alpha / len(design.treatments))
    shown = np.zeros(len(sums[design.control][0]), bool)
    for arm in design.treatments:
        there = np.minimum(sums[design.control][0], sums[arm][0]) >= 2
        if there.any():
            both = [(n[there], ones[there]) for n, ones in (sums[design.control], sums[arm])]
            first, second = (Moments(n, (ones,), (ones,)) for n, ones in both)
            pair = ArmPair(design.primary, first, second, design.plan_for(arm))
            shown[there] |= pair.evidence() >= level
    return shown


def too_many(trials: int, chance: float) -> int:
    """The least number of wrong ones that a sound test has with a chance below `RARE`."""
    left = 1.0
    for count in range(trials + 1):
        if left < RARE:
            return count
        left -= math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
    return trials + 1


def _request_finding(traffic: Traffic) -> AAFinding:
    answered = sum(map(len, traffic.arms.values()))
    sound = not traffic.errors and not traffic.outside and answered > 0
    text = (
        f"{answered:,} answers in the experiment, {traffic.outside:,} outside, {len(traffic.errors):,} errors"
    )
    if traffic.errors:
        text += f"; the first: {traffic.errors[0]}"
    elif traffic.outside:
        text += "; the route did not get these prompts: give one that it answers with --prompt"
    return AAFinding("requests", sound, text)


def _assignment_finding(traffic: Traffic, phase: ExperimentPhase) -> AAFinding:
    """Every answer's arm is the one that anybody computes from the salts."""
    salts = AssignmentSalts(phase.enrolment_salt, phase.variant_salt)
    allocation = UnitAllocation(salts, tuple(WeightedArm(arm.name, arm.weight) for arm in phase.spec.arms))
    wrong = 0
    for unit, arms in traffic.arms.items():
        found = allocation.assign(unit)
        wrong += not isinstance(found, Assigned) or set(arms) != {found.arm}
    twice = sum(len(arms) > 1 for arms in traffic.arms.values())
    text = (
        f"{len(traffic.arms) - wrong:,} of {len(traffic.arms):,} units have the arm that the published hash"
        f" gives them; {twice:,} asked twice"
    )
    return AAFinding("assignment", not wrong and bool(traffic.arms), text)


def _logging_finding(traffic: Traffic, report: Report) -> AAFinding:
    """Each exposure arrived, and once: units and answers by arm."""
    sent = {n.arm: (len(traffic.units_of(n.arm)), traffic.answers_of(n.arm)) for n in report.numbers}
    listed = ", ".join(
        f"{n.arm} {n.units:,} units of {sent[n.arm][0]:,}, {n.responses:,} answers of {sent[n.arm][1]:,}"
        for n in report.numbers
    )
    sound = all((n.units, n.responses) == sent[n.arm] for n in report.numbers)
    return AAFinding("logging", sound, f"logged of sent: {listed}")


def _outcome_finding(traffic: Traffic, report: Report) -> AAFinding:
    """Each outcome counted once, though some were sent twice."""
    name = report.experiment.spec.primary.name
    pairs = [
        (n.answered.get(name, 0), len(traffic.units_of(n.arm) & traffic.recorded)) for n in report.numbers
    ]
    repeated = sum(traffic.repeated.values())
    once = traffic.repeated.get("duplicate", 0) == repeated
    counted, wanted = (sum(pair[i] for pair in pairs) for i in (0, 1))
    text = f"{counted:,} counted of {wanted:,} sent; {repeated:,} sent twice, "
    text += "each counted once" if once else f"told as {dict(traffic.repeated)}"
    return AAFinding("outcomes", once and all(got == of for got, of in pairs), text)


def _check_findings(report: Report) -> Iterator[AAFinding]:
    for check in report.checks:
        if check.name != "maturity":
            yield AAFinding(check.name, not check.failed, check.text)


def _verdict_finding(report: Report) -> AAFinding:
    """Equal arms should be undecided. Now and then they are not, as often as the level says."""
    verdict, alpha = report.verdict, report.experiment.spec.alpha
    p = min((arm.adjusted_p for arm in report.arms), default=1.0)
    text = f"{verdict.decision} ({verdict.rule}), p = {p:.2g} for a difference"
    if verdict.decision != "undecided":
        text += f"; arms are equal, and {alpha:.0%} of sound tests say so all the same: run it again"
    return AAFinding("verdict", verdict.decision == "undecided" or p > RARE, text)
