"""An arm's version becomes the default, on a verdict or by force, and goes back again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from router.errors import FailedPrecondition, FieldViolation, GateNotPassed, InvalidRequest, RouterError
from router.experiments.management.manager import Manager, check_etag, stopped
from router.experiments.model import ArmSpec, AuditEntry, Experiment, Lifecycle, Mode
from router.experiments.report.model import Report, Ruling
from router.names import parse_version
from router.ports import Force
from router.types import AdapterInfo, AdapterRef

log = logging.getLogger(__name__)
PROMOTE = "promote"
NO_VERSION = (
    "a holdout compares all experiments together with none of them, so no version is to be promoted by it:"
    " promote the arms of the experiments themselves, and stop this one when you have read it"
)


class Defaults(Protocol):
    """What of the registry is needed, callable from a thread."""

    def get(self, name: str, version: str = "", /) -> AdapterInfo:
        """As `AdapterRegistry.get`: a quarantined one too."""
        ...

    def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None, /
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """As `AdapterRegistry.set_default`."""
        ...


@dataclass(frozen=True, slots=True)
class Promotion:
    """What became of the default version. `previous` is None where there was none."""

    experiment: Experiment
    default: AdapterRef
    previous: AdapterRef | None = None


class Promoter:
    """Promotes and rolls back. `judge` gives the report of an experiment's last phase, now."""

    def __init__(self, manager: Manager, defaults: Defaults, judge: Callable[[Experiment], Report]) -> None:
        self._manager, self._defaults, self._judge = manager, defaults, judge

    def promote(
        self, name: str, arm: str, etag: str, actor: str, *, force: bool = False, reason: str = ""
    ) -> Promotion:
        """Set the arm's version as default and stop the experiment. `arm` empty: the one of the verdict.

        Raises FailedPrecondition unless the arm's verdict is to promote it, or `force`, and for a holdout.
        The same arm again changes nothing. The verdict is also the version's proof to the registry's gate,
        and force overrules both; all of it is on record.
        """
        with self._manager.lock:
            experiment = self._manager.read(name)
            if experiment.promoted:
                return self._again(experiment, arm)
            check_etag(experiment, etag)
            if experiment.spec.mode is Mode.HOLDOUT:
                raise FailedPrecondition(NO_VERSION, resource=experiment.resource)
            if experiment.state is Lifecycle.DRAFT:
                text = "it has not been started: start it, or set the version with SetDefaultVersion"
                raise FailedPrecondition(text, resource=experiment.resource)
            report = self._judge(experiment)
            chosen = _chosen_arm(experiment, report, arm, force)
            ruling = _ruling_of(report, chosen.name)
            if not force:
                _check_ruling(experiment, chosen, ruling)
            return self._set(experiment, chosen, ruling, report, actor, force, reason)

    def roll_back(self, name: str, reason: str, actor: str) -> Promotion:
        """Put back the default from before. Raises FailedPrecondition where nothing was promoted, where
        there was no default before, or where the default was changed by somebody else since."""
        with self._manager.lock:
            experiment = self._manager.read(name)
            now, before = self._promoted(experiment)
            if before is None:
                text = f"there was no default before {now}; use ResetDefaultVersion"
                raise FailedPrecondition(text, resource=experiment.resource)
            present = self._defaults.get(now.name).ref
            if present not in (now, before):
                text = (
                    f"the default is {present} by now, not {now} that was promoted: somebody changed it "
                    "since; use SetDefaultVersion"
                )
                raise FailedPrecondition(text, resource=experiment.resource)
            why = f"{experiment.resource} rolled back" + (f": {reason}" if reason else "")
            self._restore(before, Force(actor, why))
            at = self._manager.clock()
            detail = {"arm": experiment.promoted, "default": before.resource, "previous": now.resource}
            after = replace(experiment, promoted="", updated=at)
            kept = self._manager.keep(after, actor, "roll back", reason, detail)
            return Promotion(kept, before, now)

    def _set(
        self,
        experiment: Experiment,
        arm: ArmSpec,
        ruling: Ruling,
        report: Report,
        actor: str,
        force: bool,
        reason: str,
    ) -> Promotion:
        ref = _version_of(experiment, arm)
        overruled = f"{experiment.resource}, arm {arm.name}" + (f": {reason}" if reason else "")
        proof = Force(experiment.resource, f"arm {arm.name}: {ruling.text}", won=True)
        _, previous = self._defaults.set_default(ref, "", Force(actor, overruled) if force else proof)
        detail = _promotion_detail(arm, ref, previous, ruling, report, force)
        try:
            kept = self._keep(experiment, arm, actor, reason, detail)
        except RouterError:
            self._undo(ref, previous, actor)
            raise
        return Promotion(kept, ref, previous)

    def _keep(
        self, experiment: Experiment, arm: ArmSpec, actor: str, reason: str, detail: Mapping[str, object]
    ) -> Experiment:
        at = self._manager.clock()
        if experiment.state is Lifecycle.RUNNING:
            experiment = stopped(experiment, at, f"arm {arm.name} was promoted")
        after = replace(experiment, promoted=arm.name, updated=at)
        return self._manager.keep(after, actor, PROMOTE, reason, detail)

    def _undo(self, ref: AdapterRef, previous: AdapterRef | None, actor: str) -> None:
        """The promotion could not be recorded: nothing happened."""
        log.warning("promotion of %s is taken back: it could not be recorded", ref)
        if previous is not None:
            self._restore(previous, Force(actor, "a promotion that was not recorded"))

    def _restore(self, ref: AdapterRef, force: Force) -> None:
        """Default again, gate or not; an override that is there already stays as it is."""
        try:
            self._defaults.set_default(ref, "", None)
        except GateNotPassed:
            self._defaults.set_default(ref, "", force)

    def _again(self, experiment: Experiment, arm: str) -> Promotion:
        if arm not in ("", experiment.promoted):
            text = f"arm {experiment.promoted!r} was promoted already; roll that back first"
            raise FailedPrecondition(text, resource=experiment.resource)
        now, before = self._promoted(experiment)
        return Promotion(experiment, now, before)

    def _promoted(self, experiment: Experiment) -> tuple[AdapterRef, AdapterRef | None]:
        """Version that was promoted, and the default before; from the audit trail."""
        if not experiment.promoted:
            text = "no arm of it is promoted"
            raise FailedPrecondition(text, resource=experiment.resource)
        entry: AuditEntry = next(e for e in reversed(self._trail(experiment)) if e.act == PROMOTE)
        before = str(entry.detail["previous"])
        return parse_version(str(entry.detail["default"])), parse_version(before) if before else None

    def _trail(self, experiment: Experiment) -> tuple[AuditEntry, ...]:
        return self._manager.store.trail(experiment.name)


def _chosen_arm(experiment: Experiment, report: Report, arm: str, force: bool) -> ArmSpec:
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


def _ruling_of(report: Report, arm: str) -> Ruling:
    """The arm's own verdict; control has the experiment's."""
    return next((a.verdict for a in report.arms if a.arm == arm), report.verdict)


def _check_ruling(experiment: Experiment, arm: ArmSpec, ruling: Ruling) -> None:
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


def _version_of(experiment: Experiment, arm: ArmSpec) -> AdapterRef:
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


def _promotion_detail(
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
