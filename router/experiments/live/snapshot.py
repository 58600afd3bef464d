"""The running experiments as one value that never changes: what a request is assigned by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from router.errors import InvalidRequest
from router.experiments.assignment import Allocation, Arm, Salts
from router.experiments.model import ArmSpec, Experiment, Lifecycle, Mode, Spec

log = logging.getLogger(__name__)
BASE = "base"


@dataclass(frozen=True, slots=True)
class Epoch:
    """Weights from `start` on, in unix seconds."""

    start: float
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class Running:
    """One running experiment. `epochs`, oldest first, overrule `allocation` from their start on."""

    name: str
    phase: int
    spec: Spec
    allocation: Allocation
    arms: Mapping[str, ArmSpec]
    epochs: tuple[Epoch, ...] = ()

    @property
    def control(self) -> ArmSpec:
        """The arm that the others are compared with."""
        return self.arms[self.spec.control]

    @property
    def by_router(self) -> bool:
        """Whether its arms are router configurations."""
        return not self.spec.route

    def at(self, now: float) -> Allocation:
        """How units are divided at a time."""
        return next((e.allocation for e in reversed(self.epochs) if e.start <= now), self.allocation)

    def reweighted(self, start: float, weights: Mapping[str, float]) -> Running:
        """With other weights from `start` on. Raises InvalidRequest where they do not fit the arms."""
        arms = tuple(Arm(name, weights.get(name, 0.0)) for name in self.arms)
        epochs = [e for e in self.epochs if e.start < start][-1:]  # one that runs, one to come
        return replace(self, epochs=(*epochs, Epoch(start, replace(self.allocation, arms=arms))))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """By route, in the order of their names. False if nothing runs."""

    split: Mapping[str, tuple[Running, ...]] = field(default_factory=dict)
    shadows: Mapping[str, tuple[Running, ...]] = field(default_factory=dict)
    routers: tuple[Running, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.split or self.shadows or self.routers)

    def all(self) -> tuple[Running, ...]:
        """Every running experiment."""
        by_route = (*self.split.values(), *self.shadows.values(), self.routers)
        return tuple(sorted((r for some in by_route for r in some), key=lambda r: r.name))


def snapshot_of(running: Iterable[Running]) -> Snapshot:
    """Sort them by what they do to a request."""
    split: dict[str, tuple[Running, ...]] = {}
    shadows: dict[str, tuple[Running, ...]] = {}
    routers: tuple[Running, ...] = ()
    for one in sorted(running, key=lambda r: r.name):
        if one.by_router:
            routers += (one,)
            continue
        group = shadows if one.spec.mode is Mode.SHADOW else split
        group[one.spec.route] = (*group.get(one.spec.route, ()), one)
    return Snapshot(split, shadows, routers)


def running_of(experiment: Experiment, salt: Callable[[str], str], holdout: float) -> Running | None:
    """The experiment ready to assign, if it runs; `salt` is the store's.

    One that cannot be assigned by (a database that somebody wrote to by hand) is left out, and logged.
    """
    phase, spec = experiment.phase, experiment.spec
    if experiment.state is not Lifecycle.RUNNING or phase is None:
        return None
    shared = salt(f"namespace:{spec.namespace}") if spec.namespace else ""
    salts = Salts(phase.enrolment_salt, phase.variant_salt, shared, salt("holdout") if holdout else "")
    arms = tuple(Arm(arm.name, arm.weight) for arm in spec.arms)
    try:
        allocation = Allocation(salts, arms, spec.enrolment, spec.slot, holdout)
    except InvalidRequest as error:
        log.error("experiment %s is not served: %s", experiment.name, error.message)
        return None
    return Running(experiment.name, phase.number, spec, allocation, {arm.name: arm for arm in spec.arms})
