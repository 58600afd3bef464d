"""What the reader of a report should know of how it came about, in sentences, and how far a plan is.

The chance that it still succeeds is advice on giving up, no verdict. It adds no error: to follow it ends an
experiment before an arm is promoted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from router.extensions.experiments.model import Mode, Spec, Unanswered
from router.extensions.experiments.report.model import PlannedProgress
from router.extensions.experiments.report.source import PhaseEvidence, exposed_units
from router.extensions.experiments.stats.planning import GIVE_UP, chances
from router.extensions.experiments.verdict import ArmVerdict, ExperimentVerdict, VerdictDecision
from router.quantities import counted

if TYPE_CHECKING:
    from router.extensions.experiments.store.series import PhaseData

MODE_NOTES = {
    Mode.SHADOW: (
        "nobody saw the answers of the other arms: the log says how these arms run, not what users prefer"
    ),
    Mode.HOLDOUT: (
        "this compares those who took part in any experiment with those whom the server keeps out of all;"
        " nothing is promoted or stopped by it"
    ),
}


def notes_of(source: PhaseEvidence) -> tuple[str, ...]:
    """In the order of how much they change the reading."""
    return tuple(_notes(source))


def _notes(source: PhaseEvidence) -> Iterator[str]:
    spec = source.spec
    if text := MODE_NOTES.get(spec.mode):
        yield text
    yield from _unanswered_notes(source)
    if source.data.late:
        yield f"not counted: {counted(source.data.late, 'outcome')} that happened or came too late"
    if source.data.unplanned:
        outcomes = counted(source.data.unplanned, "outcome")
        yield f"not counted: {outcomes} of a metric that this plan does not have"
    yield from _unserved_notes(source.data, spec)
    yield from _degraded_notes(source)
    yield from _phase_notes(source)


def _unanswered_notes(source: PhaseEvidence) -> Iterator[str]:
    spec = source.spec
    if spec.mode is Mode.SHADOW:
        return
    units = sum(b.exposed for b in source.mature)
    missing = units - sum(b.answered.get(spec.primary.name, 0) for b in source.mature)
    if missing:
        treated = "count as 0" if spec.primary.missing is Unanswered.ZERO else "are left out"
        whole = f"{counted(units, spec.unit)} with their whole window"
        yield f"{missing:,} of {whole} have no {spec.primary.name} and {treated}"


def _degraded_notes(source: PhaseEvidence) -> Iterator[str]:
    for arm in source.design.weights:
        if broken := sum(b.degraded for b in source.data.buckets if b.arm == arm):
            yield (
                f"{arm} could not answer {counted(broken, source.spec.unit)}; something else did, and they"
                f" still count for {arm}"
            )


def _phase_notes(source: PhaseEvidence) -> Iterator[str]:
    phase, last = source.phase, source.experiment.phase
    if phase.number > 1:
        why = phase.reason or "no reason given"
        yield f"this is phase {phase.number} ({why}): nothing of an earlier phase counts"
    if last is not None and last.number != phase.number:
        yield f"this is phase {phase.number}; the last one is {last.number}"


def _unserved_notes(data: PhaseData, spec: Spec) -> Iterator[str]:
    """A note with the counts of each arm, and what they leave out; none where every answer began."""
    shown = [
        f"{arm.name} {many:,} of {data.responses.get(arm.name, 0):,}"
        for arm in spec.arms
        if (many := data.unserved.get(arm.name, 0))
    ]
    if shown:
        yield (
            f"requests that ended before their first token: {'; '.join(shown)}. Their {spec.unit}s count in"
            " their arms; they have no time_to_first_token, so a slow arm looks faster by it than it is"
        )


# -- How far it is

HELD_BACK = ("guardrail-open", "missing-open")
"""Rules of arms whose difference is shown, and that wait for something else."""


def progress_of(source: PhaseEvidence, judged: ExperimentVerdict) -> PlannedProgress | None:
    """None of what is no split."""
    design = source.design
    if source.spec.mode is not Mode.SPLIT:
        return None
    units = sum(exposed_units(source.mature, arm) for arm in design.weights)
    waiting = [arm for arm in judged.arms if _waits(arm)]
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
