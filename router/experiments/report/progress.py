"""How far a planned experiment is, and the chance that it still succeeds: advice on giving up, no verdict.

The advice adds no error: to follow it ends an experiment before an arm is promoted.
"""

from __future__ import annotations

import math

from router.experiments.model import Mode
from router.experiments.report.model import PlannedProgress
from router.experiments.report.source import PhaseEvidence, exposed_units
from router.experiments.stats.planning import GIVE_UP, chances
from router.experiments.verdict import ArmVerdict, ExperimentVerdict, VerdictDecision

HELD_BACK = ("guardrail-open", "missing-open")
"""Rules of arms whose difference is shown, and that wait for something else."""


def progress_of(source: PhaseEvidence, judged: ExperimentVerdict) -> PlannedProgress | None:
    """None of what is no split."""
    design = source.design
    if source.spec.mode is not Mode.SPLIT:
        return None
    units = sum(exposed_units(source.mature, arm) for arm in design.weights)
    waiting = [arm for arm in judged.arms if arm.arm not in source.spec.withdrawn and _waits(arm)]
    held = any((arm.blocked or arm.verdict).rule in HELD_BACK for arm in waiting)
    reached = bool(waiting) and all(arm.planned is not None and arm.planned.reached for arm in waiting)
    reached = reached and not held
    known = [found for arm in waiting if (found := _chances(source, arm)) is not None]
    chance = max((now for now, _ in known), default=None)
    planned = max((as_planned for _, as_planned in known), default=None)
    still = len(known) == len(waiting) and not reached
    give_up = still and chance is not None and planned is not None and max(chance, planned) < GIVE_UP
    if held or any(arm.verdict.decision == VerdictDecision.PROMOTE for arm in judged.arms) or not waiting:
        chance, planned, give_up, text = None, None, False, ""
    elif reached:
        text = _ended(source, waiting)
    else:
        text = _in_words(source, units, chance, planned, give_up)
    size = design.plan.units
    return PlannedProgress(units, size, reached, chance, planned, give_up, text)


def _waits(arm: ArmVerdict) -> bool:
    """Whether it may still be shown to be better, were the experiment valid."""
    decision = (arm.blocked or arm.verdict).decision
    return decision == VerdictDecision.UNDECIDED and arm.primary is not None


def _chances(source: PhaseEvidence, arm: ArmVerdict) -> tuple[float, float] | None:
    """That the planned bound is still passed: if it goes on as now, and with the effect that the planned
    size finds with 80 % power. None where it cannot be told yet, or is over."""
    found, design = arm.planned, source.design
    if found is None or found.reached or not found.ready:
        return None
    alpha = design.plan.alpha / len(design.treatments)
    return chances(found.z, found.part, alpha)


def _in_words(
    source: PhaseEvidence, units: int, chance: float | None, planned: float | None, give_up: bool
) -> str:
    size = source.design.plan.units
    there = f"{units:,} of {size:,} planned {source.spec.unit}s had their time"
    if chance is None or planned is None:
        return there
    likely = f"chance of success by {size:,} {source.spec.unit}s is {_percent(planned)}"
    if give_up:
        return f"give up is reasonable: {likely} at most; {there}"
    return (
        f"{there}; {likely} with the effect that this size is for,"
        f" {_percent(chance)} if it goes on as it looks now"
    )


def _percent(chance: float) -> str:
    return "under 1 %" if chance < 0.01 else f"{100 * chance:.0f} %"


def _ended(source: PhaseEvidence, arms: list[ArmVerdict]) -> str:
    """What the planned size leaves out."""
    sign, size = source.design.primary.sign, source.design.plan.units
    parts = []
    for arm in arms:
        best = arm.primary.interval[1 if sign > 0 else 0] if arm.primary else math.inf
        if math.isfinite(best):
            parts.append(
                f"{arm.arm} is not better by more than {abs(best):.3g}"
                if sign * best > 0
                else f"{arm.arm} is not better"
            )
    excluded = f": shown is that {', and that '.join(parts)}" if parts else ""
    return f"no difference found at the planned size of {size:,} {source.spec.unit}s{excluded}"
