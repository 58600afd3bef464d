"""The phases of an experiment, and what a change of it does to them.

A new phase has salts of its own, and nothing of the one before counts in it. A larger
enrolment share and a stop need none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from router.extensions.experiments.assignment import AssignmentSalts
from router.extensions.experiments.model import (
    EARLY_SECONDS,
    Experiment,
    ExperimentPhase,
    Lifecycle,
    Spec,
)

NewSalts = Callable[[], AssignmentSalts]


def opened(
    experiment: Experiment,
    spec: Spec,
    now: float,
    reason: str,
    salts: NewSalts = AssignmentSalts.fresh,
) -> Experiment:
    """Running, in a new phase with salts of its own: nothing carries over from the one before."""
    fresh = salts()
    phase = ExperimentPhase(
        len(experiment.phases) + 1,
        now,
        fresh.enrolment,
        fresh.variant,
        spec,
        reason=reason,
        early=min(EARLY_SECONDS, spec.window),
    )
    return replace(
        experiment,
        spec=spec,
        state=Lifecycle.RUNNING,
        phases=(*_ended(experiment, now), phase),
        updated=now,
        stopped=None,
        stop_reason="",
    )


def without_arms(spec: Spec, names: Collection[str]) -> Spec:
    """The other arms; control has the shares of these."""
    freed = sum(arm.weight for arm in spec.arms if arm.name in names)
    if not freed:
        return spec
    left = [arm for arm in spec.arms if arm.name not in names]
    return replace(
        spec,
        arms=tuple(
            replace(arm, weight=round(arm.weight + freed, 12)) if arm.name == spec.control else arm
            for arm in left
        ),
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


def _ended(experiment: Experiment, now: float) -> tuple[ExperimentPhase, ...]:
    *before, last = experiment.phases or (None,)
    if last is None:
        return ()
    return (*before, last if last.ended is not None else replace(last, ended=now))
