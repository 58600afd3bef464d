"""What may be done with an experiment, and when.

An experiment is created, edited, started and stopped; an arm is promoted and rolled back. Each change is
kept in the store with an audit entry in the same transaction.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from router.errors import (
    FailedPrecondition,
    FieldViolation,
    GateNotPassed,
    InvalidRequest,
    RouterError,
    StaleEtag,
)
from router.extensions.experiments.assignment import AssignmentSalts
from router.extensions.experiments.model import (
    ArmSpec,
    AuditEntry,
    Experiment,
    Lifecycle,
    Mode,
    Spec,
    id_problem,
)
from router.extensions.experiments.phases import (
    NewSalts,
    only_wider,
    opened,
    stopped,
    widened,
)
from router.extensions.experiments.plan_file import values_of
from router.extensions.experiments.plans import Known, chosen, conflict, plan_problems
from router.extensions.experiments.report.model import Report, Ruling
from router.extensions.experiments.store.store import ExperimentStore
from router.names import parse_version
from router.ports import Force
from router.types import AdapterInfo, AdapterRef

Clock = Callable[[], float]


class Manager:
    """Every call blocks on the store: call it from a thread. One change at a time in this process; between
    processes the store's etags tell.
    """

    def __init__(
        self,
        store: ExperimentStore,
        known: Known,
        *,
        clock: Clock = time.time,
        salts: NewSalts = AssignmentSalts.fresh,
    ) -> None:
        self.store, self.known, self.clock = store, known, clock
        self._salts = salts
        self.lock = threading.RLock()

    def problems(self, spec: Spec, before: Spec | None = None) -> list[FieldViolation]:
        """Everything that is wrong with a new plan, or with the edit of one that was kept `before`."""
        return plan_problems(chosen(spec, before), self.known)

    def get(self, name: str) -> Experiment:
        """Raises ExperimentNotFound."""
        return self.store.get(name)

    def list(self) -> tuple[Experiment, ...]:
        """All, by name."""
        return self.store.list()

    def create(self, name: str, spec: Spec, actor: str) -> Experiment:
        """Keep a plan. Raises InvalidRequest, AlreadyExists."""
        if problem := id_problem(name):
            raise InvalidRequest([FieldViolation("experiment_id", problem)])
        spec = chosen(spec)
        self._check(spec)
        now = self.clock()
        with self.lock:
            kept = self.store.create(Experiment(name, spec, created=now, updated=now))
            self.store.audit(AuditEntry(name, now, actor, "create", spec.hypothesis))
        return kept

    def update(
        self, name: str, edit: Callable[[Spec], Spec], etag: str, actor: str, *, new_phase: bool = True
    ) -> Experiment:
        """Put `edit(spec)` in place. While it runs, this opens a new phase, unless all that changes is a
        larger enrolment share. A warning of the result names what a new phase leaves behind.

        Raises InvalidRequest, StaleEtag, FailedPrecondition (a conflict with another experiment, a new phase
        without `new_phase`)."""
        with self.lock:
            experiment = self.read(name, etag)
            old = experiment.spec
            spec = chosen(edit(old), old)
            self._check(spec, old)
            if spec == old:
                return experiment
            now, detail = self.clock(), {"fields": _changed_fields(old, spec)}
            if experiment.state is not Lifecycle.RUNNING:
                after = replace(experiment, spec=spec, updated=now)
                return self.keep(after, actor, "update", "", detail)
            if only_wider(old, spec):
                return self.keep(widened(experiment, spec, now), actor, "widen", "", detail)
            number, counted = len(experiment.phases), self._counted(experiment, now)
            if not new_phase:
                text = (
                    f"the change ends phase {number}, whose {counted} do not count afterwards; to change it "
                    "all the same, set new_phase (`--new-phase`)"
                )
                raise FailedPrecondition(text, resource=experiment.resource)
            reason = f"edited: {', '.join(_changed_fields(old, spec))}"
            after = self._open(experiment, spec, actor, "new phase", reason, detail)
            return replace(after, warnings=(f"phase {number} ended: its {counted} do not count any more",))

    def _check(self, spec: Spec, before: Spec | None = None) -> None:
        """Raise InvalidRequest with all that is wrong with a new plan, or an edited one."""
        if found := self.problems(spec, before):
            raise InvalidRequest(found)

    def _counted(self, experiment: Experiment, now: float) -> str:
        """Units and days of the last phase, in words."""
        phase = experiment.phases[-1]
        units = sum(bucket.exposed for bucket in self.store.data(experiment.name, phase.number).buckets)
        return f"{units:,} units in {(now - phase.started) / 86_400:.1f} days"

    def start(self, name: str, etag: str, actor: str) -> Experiment:
        """Begin to assign units; the same again changes nothing. A stopped one starts a new phase.

        Raises FailedPrecondition where its adapters are not there or another experiment is in the way.
        """
        with self.lock:
            experiment = self.read(name)
            if experiment.state is Lifecycle.RUNNING:
                return experiment
            check_etag(experiment, etag)
            if experiment.promoted:
                text = (
                    f"arm {experiment.promoted!r} was promoted; roll that back, or create another experiment"
                )
                raise FailedPrecondition(text, resource=experiment.resource)
            if found := plan_problems(experiment.spec, self.known):
                text = "; ".join(f"{v.field}: {v.description}" for v in found)
                raise FailedPrecondition(f"it cannot start: {text}", resource=experiment.resource)
            reason = "restarted" if experiment.phases else "started"
            return self._open(experiment, experiment.spec, actor, "start", reason, {})

    def stop(self, name: str, etag: str, reason: str, actor: str) -> Experiment:
        """Everybody gets the default; the same again changes nothing. Raises FailedPrecondition (a draft)."""
        with self.lock:
            experiment = self.read(name)
            if experiment.state is Lifecycle.STOPPED:
                return experiment
            check_etag(experiment, etag)
            if experiment.state is Lifecycle.DRAFT:
                raise FailedPrecondition("it has not been started", resource=experiment.resource)
            return self.keep(stopped(experiment, self.clock(), reason), actor, "stop", reason)

    def delete(self, name: str, etag: str) -> None:
        """Forget it and all that was logged of it. Raises FailedPrecondition (running), StaleEtag."""
        with self.lock:
            experiment = self.read(name, etag)
            if experiment.state is Lifecycle.RUNNING:
                raise FailedPrecondition("it runs; stop it first", resource=experiment.resource)
            self.store.delete(name, experiment.etag)

    def read(self, name: str, etag: str = "") -> Experiment:
        """Raises ExperimentNotFound, and StaleEtag where `etag` is given and another."""
        experiment = self.store.get(name)
        check_etag(experiment, etag)
        return experiment

    def keep(
        self,
        experiment: Experiment,
        actor: str,
        act: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Experiment:
        """Put it in place of what was read, with an audit entry in the same transaction."""
        entry = AuditEntry(experiment.name, experiment.updated, actor, act, reason, detail or {})
        return self.store.replace(experiment, entry)

    def _open(
        self,
        experiment: Experiment,
        spec: Spec,
        actor: str,
        act: str,
        reason: str,
        detail: Mapping[str, object],
    ) -> Experiment:
        """Run it in a new phase. Raises FailedPrecondition where another experiment is in the way.

        Another server may start one between look and write: who sees the other afterwards gives way.
        """
        self._check_conflicts(experiment.name, spec)
        after = opened(experiment, spec, self.clock(), reason, self._salts)
        kept = self.keep(after, actor, act, reason, {**detail, "phase": len(after.phases)})
        try:
            self._check_conflicts(experiment.name, spec)
        except FailedPrecondition as error:
            self.keep(stopped(kept, self.clock(), error.message), actor, "stop", error.message)
            raise
        return kept

    def _check_conflicts(self, name: str, spec: Spec) -> None:
        if found := conflict(name, spec, self.store.list(), self.known.sees):
            raise FailedPrecondition(f"it cannot run: {found}", resource=f"experiments/{name}")


def check_etag(experiment: Experiment, etag: str) -> None:
    """Raise StaleEtag where one is given and another."""
    if etag and etag != experiment.etag:
        raise StaleEtag(f"{experiment.resource} changed since its etag was read; read it again")


def _changed_fields(old: Spec, new: Spec) -> dict[str, dict[str, object]]:
    """Field -> its value before and after, of JSON types."""
    before, after = values_of(old), values_of(new)
    return {
        name: {"before": before[name], "after": value}
        for name, value in after.items()
        if value != before[name]
    }


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
class PromotedVersion:
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
    ) -> PromotedVersion:
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

    def roll_back(self, name: str, reason: str, actor: str) -> PromotedVersion:
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
            return PromotedVersion(kept, before, now)

    def _set(
        self,
        experiment: Experiment,
        arm: ArmSpec,
        ruling: Ruling,
        report: Report,
        actor: str,
        force: bool,
        reason: str,
    ) -> PromotedVersion:
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
        return PromotedVersion(kept, ref, previous)

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

    def _again(self, experiment: Experiment, arm: str) -> PromotedVersion:
        if arm not in ("", experiment.promoted):
            text = f"arm {experiment.promoted!r} was promoted already; roll that back first"
            raise FailedPrecondition(text, resource=experiment.resource)
        now, before = self._promoted(experiment)
        return PromotedVersion(experiment, now, before)

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
        f"{what}: the verdict is {ruling.decision}: {ruling.text}; force overrules it",
        resource=experiment.resource,
        decision=ruling.decision,
        rule=ruling.rule,
    )


def _version_of(experiment: Experiment, arm: ArmSpec) -> AdapterRef:
    """The version to make the default. Raises FailedPrecondition where the arm is no version of the route."""
    if arm.adapter is None:
        text = f"arm {arm.name!r} is not an adapter version: there is no default version to set"
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
