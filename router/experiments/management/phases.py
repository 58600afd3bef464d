"""Phases: when one is opened, ended or only widened. Pure: an experiment in, an experiment out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from router.experiments.assignment import Salts
from router.experiments.model import Experiment, Lifecycle, Phase, Spec

NewSalts = Callable[[], Salts]


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


def widened(experiment: Experiment, spec: Spec, now: float) -> Experiment:
    """With a larger enrolment share, in the same phase: everybody keeps the arm they have."""
    phases = (*experiment.phases[:-1], replace(experiment.phases[-1], spec=spec))
    return replace(experiment, spec=spec, phases=phases, updated=now)


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


def only_wider(old: Spec, new: Spec) -> bool:
    """Whether nothing changed but the enrolment share, and that grew."""
    return new.enrolment > old.enrolment and replace(new, enrolment=old.enrolment) == old


def _ended(experiment: Experiment, now: float) -> tuple[Phase, ...]:
    *before, last = experiment.phases or (None,)
    if last is None:
        return ()
    return (*before, last if last.ended is not None else replace(last, ended=now))
