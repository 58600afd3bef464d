"""Experiments from plan to stop: what is allowed when, kept in the store with an audit entry each time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace

from router.errors import FailedPrecondition, FieldViolation, InvalidRequest, StaleEtag
from router.experiments.assignment import Salts
from router.experiments.management.plans import Known, check_plan, conflict, plan_problems
from router.experiments.management.sizing import Seen, past_of, size_of
from router.experiments.model import (
    AuditEntry,
    Experiment,
    Kind,
    Lifecycle,
    Phase,
    SizeAnswer,
    SizeQuestion,
    Spec,
    id_problem,
)
from router.experiments.store.port import Store

Clock = Callable[[], float]
NewSalts = Callable[[], Salts]


class Manager:
    """Every call blocks on the store: call it from a thread. One change at a time in this process; between
    processes the store's etags tell.
    """

    def __init__(
        self,
        store: Store,
        known: Known,
        *,
        clock: Clock = time.time,
        salts: NewSalts = Salts.fresh,
    ) -> None:
        self.store, self.known, self.clock = store, known, clock
        self._salts = salts
        self.lock = threading.RLock()
        self.rates: dict[str, Mapping[str, float]] = {}  # by experiment, of proportions as they were before

    def problems(self, spec: Spec) -> list[FieldViolation]:
        """Everything that is wrong with a plan."""
        return plan_problems(spec, self.known)

    def get(self, name: str) -> Experiment:
        """Raises ExperimentNotFound."""
        return self.store.get(name)

    def list(self) -> tuple[Experiment, ...]:
        """All, by name."""
        return self.store.list()

    def size(self, question: SizeQuestion) -> SizeAnswer:
        """How long an experiment takes, by what the store knows. Raises InvalidRequest."""
        return size_of(question, Seen(self.store, self.known.sees), self.clock())

    def create(self, name: str, spec: Spec, actor: str) -> Experiment:
        """Keep a plan. Raises InvalidRequest, AlreadyExists."""
        if problem := id_problem(name):
            raise InvalidRequest([FieldViolation("experiment_id", problem)])
        check_plan(spec, self.known)
        now = self.clock()
        with self.lock:
            self._learn_rates(name, spec)
            kept = self.store.create(Experiment(name, spec, created=now, updated=now))
            self.store.audit(AuditEntry(name, now, actor, "create", spec.hypothesis))
        return kept

    def update(self, name: str, edit: Callable[[Spec], Spec], etag: str, actor: str) -> Experiment:
        """Put `edit(spec)` in place. While it runs, this opens a new phase, unless all that changes is a
        larger enrolment share or what the secondary metrics are; those may be changed when it is stopped,
        too, for what was counted. Raises InvalidRequest, StaleEtag, FailedPrecondition (an arm removed
        while it runs, a conflict with another experiment)."""
        with self.lock:
            experiment = self.read(name, etag)
            old, spec = experiment.spec, edit(experiment.spec)
            check_plan(spec, self.known)
            if spec == old:
                return experiment
            now, detail = self.clock(), {"fields": _changed_fields(old, spec)}
            self._learn_rates(name, spec)
            if experiment.phase and old.secondary != spec.secondary and _only_secondary(old, spec):
                return self.keep(_with_secondary(experiment, spec, now), actor, "secondary", "", detail)
            if experiment.state is not Lifecycle.RUNNING:
                after = replace(experiment, spec=spec, updated=now)
                return self.keep(after, actor, "update", "", detail)
            if lost := _lost_arms(old, spec):
                text = f"arm {', '.join(lost)} cannot be removed while the experiment runs; stop it first"
                raise FailedPrecondition(text, resource=experiment.resource)
            if _only_wider(old, spec):
                return self.keep(_widened(experiment, spec, now), actor, "widen", "", detail)
            reason = f"edited: {', '.join(_changed_fields(old, spec))}"
            return self._open(experiment, spec, actor, "new phase", reason, detail)

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
            self._learn_rates(name, experiment.spec)
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
            self.rates.pop(name, None)

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

    def _learn_rates(self, name: str, spec: Spec) -> None:
        """What is known of a plan's proportions, so that it can be warned of events that are too rare."""
        if not spec.route:
            return
        now = self.clock()
        pasts = (
            past_of(Seen(self.store, self.known.sees), spec.route, m.name, m.kind, now)
            for m in (spec.primary, *spec.guardrails)
            if m.kind is Kind.PROPORTION
        )
        self.rates[name] = {past.metric.name: past.value for past in pasts if past is not None}

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


def opened(
    experiment: Experiment, spec: Spec, now: float, reason: str, salts: NewSalts = Salts.fresh
) -> Experiment:
    """Running, in a new phase with salts of its own: nothing carries over from the one before."""
    fresh = salts()
    phase = Phase(len(experiment.phases) + 1, now, fresh.enrolment, fresh.variant, spec, reason=reason)
    return replace(
        experiment,
        spec=spec,
        state=Lifecycle.RUNNING,
        phases=(*_ended(experiment, now), phase),
        updated=now,
        stopped=None,
        stop_reason="",
    )


def _widened(experiment: Experiment, spec: Spec, now: float) -> Experiment:
    """With a larger enrolment share, in the same phase: everybody keeps the arm they have."""
    phases = (*experiment.phases[:-1], replace(experiment.phases[-1], spec=spec))
    return replace(experiment, spec=spec, phases=phases, updated=now)


def _with_secondary(experiment: Experiment, spec: Spec, now: float) -> Experiment:
    """With other secondary metrics, and perhaps a larger share: the last phase has them, too.

    The plan of a stopped one may differ from that of its phase by now: the phase gets what it can tell.
    """
    *before, last = experiment.phases
    if experiment.state is Lifecycle.RUNNING:
        return _widened(experiment, spec, now)
    deciding = {m.name for m in (last.spec.primary, *last.spec.guardrails)}
    secondary = tuple(m for m in spec.secondary if m.name not in deciding)
    after = replace(last, spec=replace(last.spec, secondary=secondary))
    return replace(experiment, spec=spec, phases=(*before, after), updated=now)


def stopped(experiment: Experiment, now: float, reason: str) -> Experiment:
    """No unit is assigned any more; outcomes of the last phase still count until its window closes."""
    return replace(
        experiment,
        state=Lifecycle.STOPPED,
        phases=_ended(experiment, now),
        updated=now,
        stopped=now,
        stop_reason=reason,
    )


def _only_wider(old: Spec, new: Spec) -> bool:
    """Whether nothing changed but the enrolment share, and that grew."""
    return new.enrolment > old.enrolment and replace(new, enrolment=old.enrolment) == old


def _only_secondary(old: Spec, new: Spec) -> bool:
    """Whether nothing changed but the secondary metrics, and perhaps the enrolment share, that grew."""
    alike = replace(new, secondary=old.secondary)
    return alike == old or _only_wider(old, alike)


def _ended(experiment: Experiment, now: float) -> tuple[Phase, ...]:
    *before, last = experiment.phases or (None,)
    if last is None:
        return ()
    return (*before, last if last.ended is not None else replace(last, ended=now))


def _changed_fields(old: Spec, new: Spec) -> dict[str, dict[str, object]]:
    """Field -> its value before and after, of JSON types."""
    return {
        f.name: {"before": _plain(before), "after": _plain(after)}
        for f in fields(Spec)
        if (before := getattr(old, f.name)) != (after := getattr(new, f.name))
    }


def _plain(value: object) -> object:
    """`value` of JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Iterable):
        return [_plain(entry) for entry in value]
    return value


def _lost_arms(old: Spec, new: Spec) -> list[str]:
    """Names of the arms that are gone."""
    kept = {arm.name for arm in new.arms}
    return [arm.name for arm in old.arms if arm.name not in kept]
