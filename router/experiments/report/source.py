"""What one phase of an experiment has in the store, and which part of it may be judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from router.errors import FieldViolation, InvalidRequest
from router.experiments.design import Design
from router.experiments.model import Experiment, Mode, Phase, Spec
from router.experiments.report import cohorts
from router.experiments.report.designed import design_of
from router.experiments.stats import Moments
from router.experiments.store.port import Bucket, PhaseData, Store


@dataclass(frozen=True)
class Source:
    """A phase's sums. `triggered`, of router experiments, is of units for which the routers differed."""

    experiment: Experiment
    phase: Phase
    data: PhaseData
    triggered: PhaseData | None
    now: float

    @property
    def spec(self) -> Spec:
        """What the phase was run by."""
        return self.phase.spec

    @cached_property
    def design(self) -> Design:
        """What it is judged by."""
        return design_of(self.spec)

    @cached_property
    def mature(self) -> tuple[Bucket, ...]:
        """Buckets of units that had their whole window."""
        return cohorts.mature(self.data.buckets, self.now, self.spec.window)

    @cached_property
    def deciding(self) -> tuple[Bucket, ...]:
        """Mature buckets that the primary metric is read from: those of units that could differ."""
        if self.triggered is None:
            return self.mature
        return cohorts.mature(self.triggered.buckets, self.now, self.spec.window)

    def outcomes(self) -> dict[str, dict[str, Moments]]:
        """Arm, then metric, to the sums that `judge` takes.

        Guardrails are read from all units so far, so that harm is stopped before a window has passed: all
        arms are equally young.
        """
        design = self.design
        return {
            arm: {
                design.primary.name: cohorts.total(self.deciding, arm, design.primary),
                **{g.metric.name: cohorts.total(self.data.buckets, arm, g.metric) for g in design.guardrails},
            }
            for arm in design.weights
        }


def is_router_experiment(spec: Spec) -> bool:
    """Whether the arms are router configurations."""
    return any(arm.router is not None for arm in spec.arms)


def phase_of(experiment: Experiment, number: int) -> Phase | None:
    """The phase asked for, 0 the last one; None before the start. Raises InvalidRequest for another one."""
    if number == 0:
        return experiment.phase
    found = next((p for p in experiment.phases if p.number == number), None)
    if found is None:
        there = ", ".join(str(p.number) for p in experiment.phases) or "none, it was not started"
        raise InvalidRequest([FieldViolation("phase", f"there is no phase {number}; there are: {there}")])
    return found


def gather(store: Store, experiment: Experiment, phase: Phase, now: float) -> Source:
    """Read the sums of a phase. Raises StoreDown."""
    name = experiment.name
    routers = is_router_experiment(phase.spec) and phase.spec.mode is not Mode.SHADOW
    triggered = store.triggered(name, phase.number) if routers else None
    return Source(experiment, phase, store.data(name, phase.number), triggered, now)
