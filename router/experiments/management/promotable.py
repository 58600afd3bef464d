"""Which arm may be promoted, to which version, and what is written down of it."""

from __future__ import annotations

from router.errors import FailedPrecondition, FieldViolation, InvalidRequest
from router.experiments.model import ArmSpec, Experiment
from router.experiments.report.model import Report, Ruling
from router.types import AdapterRef

PROMOTE = "promote"


def chosen_arm(experiment: Experiment, report: Report, arm: str, force: bool) -> ArmSpec:
    """The arm asked for, or the one the verdict is to promote. Raises InvalidRequest, FailedPrecondition."""
    name = arm or (report.arm if report.verdict.decision == PROMOTE else "")
    if not name:
        if force:
            raise InvalidRequest([FieldViolation("arm", "must be named: no verdict names one")])
        raise _refused(experiment, report.verdict, "no arm may be promoted")
    arms = {a.name: a for a in experiment.spec.arms}
    if name not in arms:
        text = f"{name!r} is none of the arms: {', '.join(arms)}"
        raise InvalidRequest([FieldViolation("arm", text)])
    return arms[name]


def ruling_of(report: Report, arm: str) -> Ruling:
    """The arm's own verdict; control has the experiment's."""
    return next((a.verdict for a in report.arms if a.arm == arm), report.verdict)


def check_ruling(experiment: Experiment, arm: ArmSpec, ruling: Ruling) -> None:
    """Raise FailedPrecondition unless the verdict is to promote the arm."""
    if arm.name == experiment.spec.control:
        text = f"{arm.name!r} is control: stopping the experiment keeps what is served without it"
        raise FailedPrecondition(f"{text}; force sets its version as default", resource=experiment.resource)
    if ruling.decision != PROMOTE:
        raise _refused(experiment, ruling, f"arm {arm.name!r} may not be promoted")


def _refused(experiment: Experiment, ruling: Ruling, what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{what}: the verdict is {ruling.decision} ({ruling.rule}: {ruling.text}); force overrules it",
        resource=experiment.resource,
        decision=ruling.decision,
        rule=ruling.rule,
    )


def version_of(experiment: Experiment, arm: ArmSpec) -> AdapterRef:
    """The version to make the default. Raises FailedPrecondition where the arm is no version of the route."""
    if arm.adapter is None:
        what = "a router configuration, which is a setting" if arm.router else "not an adapter version"
        text = f"arm {arm.name!r} is {what}: there is no default version to set"
        raise FailedPrecondition(text, resource=experiment.resource)
    if arm.adapter.name != experiment.spec.route:
        text = (
            f"arm {arm.name!r} is {arm.adapter}, which is no version of the route {experiment.spec.route!r}: "
            "default versions belong to one adapter"
        )
        raise FailedPrecondition(text, resource=experiment.resource)
    return arm.adapter


def detail_of(
    arm: ArmSpec,
    ref: AdapterRef,
    previous: AdapterRef | None,
    ruling: Ruling,
    report: Report,
    force: bool,
) -> dict[str, object]:
    """What the audit entry of a promotion says: what was set, what was there, and on which verdict."""
    return {
        "arm": arm.name,
        "default": ref.resource,
        "previous": previous.resource if previous else "",
        "phase": report.phase,
        "decision": ruling.decision,
        "rule": ruling.rule,
        "text": ruling.text,
        "forced": force,
    }
