"""What the server does about a report by itself. Pure: a report in, an act out.

Rules rest on verdicts alone, never on an interval that the report shows beside them: which numbers may stop
an arm depends on the mode, and the report knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from router.experiments.management.manager import opened, stopped
from router.experiments.model import ArmSpec, AuditEntry, Experiment, Lifecycle, Mode, Spec
from router.experiments.report.model import ArmReport, Report, Ruling

ACTOR = "rule"
HARM, INVALID = "stop for harm", "invalid"


@dataclass(frozen=True, slots=True)
class Act:
    """What is to be kept: the experiment as it shall be (None: as it is), and the audit entry."""

    experiment: Experiment | None
    entry: AuditEntry


def act_on(report: Report, now: float) -> Act | None:
    """Nothing, a hold, a stop, or an arm taken out in a new phase.

    An invalid experiment is held: nothing is stopped and nothing is believed until a person has looked. That
    is said once for a rule and phase. An arm that does harm is stopped; with it the experiment, if no other
    arm is left beside control. Control gets the arm's share. What a report of a holdout says is for people.
    """
    experiment = report.experiment
    if experiment.state is not Lifecycle.RUNNING or report.phase != len(experiment.phases):
        return None
    if report.verdict.decision == INVALID:
        return _hold(report, now)
    if experiment.spec.mode is Mode.HOLDOUT:
        return None
    harmful = [arm for arm in report.arms if arm.verdict.decision == HARM]
    if not harmful:
        return None
    reason = "; ".join(f"{arm.arm}: {arm.verdict.rule}: {arm.verdict.text}" for arm in harmful)
    detail = {"phase": report.phase, "arms": [_numbers(arm) for arm in harmful]}
    left = _without(experiment.spec, {arm.arm for arm in harmful})
    if len(left.arms) > 1:
        after, act = opened(experiment, left, now, f"taken out: {reason}"), "take out"
    else:
        after, act = stopped(experiment, now, reason), "stop"
    return Act(after, AuditEntry(experiment.name, now, ACTOR, act, reason, detail))


def _hold(report: Report, now: float) -> Act | None:
    ruling, phase = report.verdict, report.phase
    said = {(e.detail.get("rule"), e.detail.get("phase")) for e in report.audit if e.act == "hold"}
    if (ruling.rule, phase) in said:
        return None
    detail = {"phase": phase, "units": {n.arm: n.units for n in report.numbers}, **_ruling(ruling)}
    return Act(None, AuditEntry(report.experiment.name, now, ACTOR, "hold", ruling.text, detail))


def _without(spec: Spec, harmful: set[str]) -> Spec:
    """The arms that are left; control has the shares of those that are not."""
    freed = sum(arm.weight for arm in spec.arms if arm.name in harmful)
    return replace(
        spec,
        arms=tuple(
            _heavier(arm, freed) if arm.name == spec.control else arm
            for arm in spec.arms
            if arm.name not in harmful
        ),
    )


def _heavier(arm: ArmSpec, by: float) -> ArmSpec:
    return replace(arm, weight=round(arm.weight + by, 12))


def _numbers(arm: ArmReport) -> dict[str, object]:
    measured = [arm.primary, *arm.guardrails] if arm.primary else [*arm.guardrails]
    metrics = [
        {
            "metric": m.metric,
            "units": list(m.units),
            "values": list(m.values),
            "effect": m.effect,
            "low": m.low,
            "high": m.high,
            "p": m.p,
            "state": m.state,
        }
        for m in measured
    ]
    return {"arm": arm.arm, **_ruling(arm.verdict), "metrics": metrics}


def _ruling(ruling: Ruling) -> dict[str, object]:
    return {"decision": ruling.decision, "rule": ruling.rule, "text": ruling.text}
