"""What an A/A self-test finds: what was sent against what was logged, and what the statistics make of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from router.cli.aa_traffic import METRIC, Traffic
from router.experiments.self_test import RARE, Finding, error_rate, uniform

if TYPE_CHECKING:
    from router.experiments.model import Phase
    from router.experiments.report.model import ArmNumbers, Report


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
    pairs = [(n.answered.get(METRIC, 0), traffic.recorded_in(n.arm)) for n in report.numbers]
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
    from router.experiments.report.designed import plan_of

    return error_rate(traffic.values, plan_of(report.experiment.spec), seed)


def _verdict(report: Report) -> Finding:
    """Equal arms should be undecided. Now and then they are not, as often as the level says."""
    verdict, alpha = report.verdict, report.experiment.spec.alpha
    p = min((arm.adjusted_p for arm in report.arms), default=1.0)
    text = f"{verdict.decision} ({verdict.rule}), p = {p:.2g} for a difference"
    if verdict.decision != "undecided":
        text += f"; arms are equal, and {alpha:.0%} of sound tests say so all the same: run it again"
    return Finding("verdict", verdict.decision == "undecided" or p > RARE, text)
