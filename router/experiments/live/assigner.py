"""Which arm of which experiment a request has: from a snapshot, without a database and without waiting."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from router.errors import InvalidRequest
from router.experiments.assignment import (
    Allocation,
    Arm,
    Assigned,
    NotAssigned,
    Reason,
    Salts,
    fraction,
    is_missing,
    request_id_like,
    unit_hash,
)
from router.experiments.model import BASE, ArmSpec, Experiment, Lifecycle, Mode, Spec
from router.ports import Place
from router.types import AdapterRef, Decision, Request

log = logging.getLogger(__name__)
MOST_WARNINGS = 8  # of one experiment


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of a request. `unit` is the unit's hash, `propensity` how likely an enrolled unit got it."""

    running: Running
    arm: ArmSpec
    propensity: float
    unit: str

    @property
    def versions(self) -> tuple[AdapterRef | None, ...]:
        """As `ports.Assignment`: the arm's version, then control's; none where the arm is a router."""
        return () if self.running.by_router else (self.arm.adapter, self.running.control.adapter)


@dataclass(frozen=True, slots=True)
class Outside:
    """A request that an experiment is about, but that takes no part, and why."""

    experiment: str
    reason: Reason


class Assigner:
    """Order of decisions: eligibility, holdout, namespace, enrolment, variant.

    A request that names a version takes no part: it gets that version. One that names an adapter takes part
    in experiments on it, since the default version is what it asked for.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._weights: dict[tuple[str, int], dict[float, Mapping[str, float]]] = {}
        self._warned = Warned()
        self._looked: set[tuple[str, int]] = set()  # phases in which a unit was found that is none

    def use(self, running: Iterable[Running]) -> None:
        """From now on these; weights that were set for a phase that still runs stay."""
        found = list(running)
        phases = {(one.name, one.phase) for one in found}
        self._weights = {key: epochs for key, epochs in self._weights.items() if key in phases}
        self._looked &= phases
        self._warned.use(found)
        self.snapshot = snapshot_of(map(self._weighted, found))
        for name, text in _other_units(self.snapshot):
            self.suspect(name, text)

    def reweight(self, name: str, phase: int, start: float, weights: Mapping[str, float]) -> None:
        """Divide the units of a running phase by other weights from `start` (unix seconds) on.

        Nothing happens if that phase is over. Raises InvalidRequest where weights do not fit the arms.
        """
        running = {(r.name, r.phase): r for r in self.snapshot.all()}
        if (one := running.get((name, phase))) is None:
            return
        changed = one.reweighted(start, weights)
        kept = {epoch.start for epoch in changed.epochs}
        epochs = {**self._weights.get((name, phase), {}), start: weights}
        self._weights[name, phase] = {at: found for at, found in epochs.items() if at in kept}
        self.snapshot = snapshot_of({**running, (name, phase): changed}.values())

    def _weighted(self, one: Running) -> Running:
        for start, weights in sorted(self._weights.get((one.name, one.phase), {}).items()):
            one = one.reweighted(start, weights)
        return one

    def assign(self, request: Request, decision: Decision, now: float) -> Assignment | Outside | None:
        """The arm among the experiments on the route of `decision`; None if there is nothing to say.

        `now` is unix seconds.
        """
        snapshot = self.snapshot
        if not snapshot.split or "/versions/" in request.routing.adapter:
            return None
        route = decision.adapter.name if decision.adapter else BASE
        return self._first(snapshot.split.get(route, ()), request, now)

    def router(self, request: Request, now: float) -> Assignment | Outside | None:
        """The arm among the router experiments: requests that name an adapter take no part."""
        if not self.snapshot.routers or request.routing.adapter:
            return None
        return self._first(self.snapshot.routers, request, now)

    def holdouts(self, request: Request, route: str, now: float) -> tuple[Assignment, ...]:
        """The unit's side in every experiment on the holdout, of a request that another one is about.

        `route` is the one before an arm took its place. Whether the unit is enrolled elsewhere makes no
        difference: sides are compared as they were drawn.
        """
        snapshot = self.snapshot
        if not snapshot.holdouts or "/versions/" in request.routing.adapter:
            return ()
        about = (*snapshot.split.get(route, ()), *(() if request.routing.adapter else snapshot.routers))
        labels = {one.spec.unit_label for one in about}
        found = []
        for one in snapshot.holdouts:
            unit = unit_of(one, request)
            if one.spec.unit_label in labels and not is_missing(unit):
                self._look(one, unit, request, now)
                found.append(_side(one, unit))
        return tuple(found)

    def _first(
        self, candidates: Iterable[Running], request: Request, now: float
    ) -> Assignment | Outside | None:
        outside = None
        for one in candidates:
            unit = unit_of(one, request)
            found = one.at(now).assign(unit)
            if isinstance(found, Assigned):
                self._look(one, unit, request, now)
                return Assignment(one, one.arms[found.arm], found.propensity, unit_hash(unit))
            outside = outside or _told(one, found)
        return outside

    def _look(self, one: Running, unit: str, request: Request, now: float) -> None:
        if (one.name, one.phase) in self._looked:
            return
        if why := request_id_like(unit, request.caller_id, now):
            self._looked.add((one.name, one.phase))
            label = f"label {one.spec.unit_label!r}" if one.spec.unit_label else "routing.unit"
            self.suspect(one.name, f"a unit ({label}) {why}: units must be the same at every request")

    def suspect(self, name: str, text: str) -> None:
        """Warn about an experiment: once in the log, and in `warnings` until its next phase."""
        self._warned.add(name, text)

    def warnings(self, name: str) -> tuple[str, ...]:
        """What deserves a second look."""
        return self._warned.of(name)


def unit_of(one: Running, request: Request) -> str:
    """The unit as the request has it; empty if it has none."""
    label = one.spec.unit_label
    return request.labels.get(label, "") if label else request.routing.unit


def hash_of(one: Running, request: Request) -> str:
    """The hash of the request's unit; empty if it has none."""
    unit = unit_of(one, request)
    return "" if is_missing(unit) else unit_hash(unit)


def _side(one: Running, unit: str) -> Assignment:
    """Control for a unit that the server keeps out of all experiments, else the other arm."""
    share = one.allocation.holdout
    held = fraction(one.allocation.salts.holdout, unit) < share
    arm = next(arm for arm in one.arms.values() if (arm.name == one.spec.control) is held)
    return Assignment(one, arm, share if held else 1 - share, unit_hash(unit))


def place_of(one: Running, request: Request, now: float) -> Place:
    """Where the request's unit stands in one experiment, at a time in unix seconds."""
    unit, place = unit_of(one, request), Place(one.name, one.phase, one.spec.unit_label)
    if one.of_holdout:
        if is_missing(unit):
            return replace(place, outside=Reason.UNIT_MISSING.value)
        side = _side(one, unit)
        arm, share = side.arm, side.propensity
    else:
        found = one.at(now).assign(unit)
        if isinstance(found, NotAssigned):
            return replace(place, outside=found.reason.value)
        arm, share = one.arms[found.arm], found.propensity
    answers = "" if one.by_router or one.of_holdout else arm.adapter.resource if arm.adapter else BASE
    return replace(place, arm=arm.name, control=arm is one.control, share=share, answers=answers)


def _other_units(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """What experiments on the holdout cannot tell of: the holdout of one unit is none of another."""
    for one in snapshot.holdouts:
        for other in snapshot.all():
            if other.assigns and other.spec.unit_label != one.spec.unit_label:
                text = f"the unit of {other.name} is another: requests of that experiment are not counted"
                yield one.name, text


def _told(one: Running, found: NotAssigned) -> Outside | None:
    return Outside(one.name, found.reason) if found.reason is Reason.UNIT_MISSING else None


@dataclass(frozen=True, slots=True)
class Reweighted:
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
    epochs: tuple[Reweighted, ...] = ()

    @property
    def control(self) -> ArmSpec:
        """The arm that the others are compared with."""
        return self.arms[self.spec.control]

    @property
    def by_router(self) -> bool:
        """Whether its arms are router configurations."""
        return not self.spec.route and not self.of_holdout

    @property
    def of_holdout(self) -> bool:
        """Whether it compares the server's holdout with everybody else."""
        return self.spec.mode is Mode.HOLDOUT

    @property
    def assigns(self) -> bool:
        """Whether its units are answered by their arms."""
        return self.by_router or self.spec.mode in (Mode.SPLIT, Mode.BANDIT)

    def at(self, now: float) -> Allocation:
        """How units are divided at a time."""
        return next((e.allocation for e in reversed(self.epochs) if e.start <= now), self.allocation)

    def reweighted(self, start: float, weights: Mapping[str, float]) -> Running:
        """With other weights from `start` on. Raises InvalidRequest where they do not fit the arms."""
        arms = tuple(Arm(name, weights.get(name, 0.0)) for name in self.arms)
        epochs = [e for e in self.epochs if e.start < start][-1:]  # one that runs, one to come
        return replace(self, epochs=(*epochs, Reweighted(start, replace(self.allocation, arms=arms))))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """By route, in the order of their names. False if nothing runs."""

    split: Mapping[str, tuple[Running, ...]] = field(default_factory=dict)
    shadows: Mapping[str, tuple[Running, ...]] = field(default_factory=dict)
    routers: tuple[Running, ...] = ()
    holdouts: tuple[Running, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.split or self.shadows or self.routers or self.holdouts)

    def all(self) -> tuple[Running, ...]:
        """Every running experiment."""
        by_route = (*self.split.values(), *self.shadows.values(), self.routers, self.holdouts)
        return tuple(sorted((r for some in by_route for r in some), key=lambda r: r.name))


def snapshot_of(running: Iterable[Running]) -> Snapshot:
    """Sort them by what they do to a request."""
    split: dict[str, tuple[Running, ...]] = {}
    shadows: dict[str, tuple[Running, ...]] = {}
    routers: tuple[Running, ...] = ()
    holdouts: tuple[Running, ...] = ()
    for one in sorted(running, key=lambda r: r.name):
        if one.of_holdout:
            holdouts += (one,)
        elif one.by_router:
            routers += (one,)
        else:
            group = shadows if one.spec.mode is Mode.SHADOW else split
            group[one.spec.route] = (*group.get(one.spec.route, ()), one)
    return Snapshot(split, shadows, routers, holdouts)


def running_of(experiment: Experiment, salt: Callable[[str], str], holdout: float) -> Running | None:
    """The experiment ready to assign, if it runs; `salt` is the store's.

    One that cannot be assigned by (a database that somebody wrote to by hand) is left out, and logged. One on
    the holdout is left out while it has a `holdout_problem`.
    """
    phase, spec = experiment.phase, experiment.spec
    if experiment.state is not Lifecycle.RUNNING or phase is None or holdout_problem(spec, holdout):
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


def holdout_problem(spec: Spec, holdout: float) -> str:
    """Why an experiment on the holdout is not served where the server's is this share; empty for others."""
    if spec.mode is not Mode.HOLDOUT:
        return ""
    if not holdout:
        return "the server has no holdout: set experiments_holdout"
    shares = {arm.name: arm.weight for arm in spec.arms}
    control = shares.pop(spec.control, 0.0)
    if len(shares) == 1 and math.isclose(control, holdout, abs_tol=1e-9):
        return ""
    return (
        f"the weight of {spec.control} is {control:g}, and the server keeps {holdout:g} of all units out: "
        "not served until that weight and experiments_holdout are equal"
    )


@dataclass(slots=True)
class Counts:
    """Everything but `lost` is changed on the event loop only."""

    exposures: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, arm
    degraded: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, arm
    unit_missing: Counter[str] = field(default_factory=Counter)  # experiment
    skipped: Counter[str] = field(default_factory=Counter)  # experiment: not assigned, the store was down
    shadows: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # experiment, arm, result
    acts: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, what a rule did
    outcomes: Counter[str] = field(default_factory=Counter)  # what became of them: Accepted, or invalid
    lost: Counter[str] = field(default_factory=Counter)  # kind of record that was not kept
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lose(self, kind: str, number: int) -> None:
        """Records of a kind were not kept. From any thread."""
        with self._lock:
            self.lost[kind] += number


class Warned:
    """Texts by experiment. Those of one that has stopped stay, for readers of its report."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._phases: dict[str, int] = {}

    def use(self, running: Iterable[Running]) -> None:
        """Forget what was said of an earlier phase."""
        for one in running:
            if self._phases.get(one.name) != one.phase:
                self._phases[one.name] = one.phase
                self._texts.pop(one.name, None)

    def add(self, name: str, text: str) -> None:
        """Say it, unless it was said. `text` is the same for the same fault, so without numbers that grow."""
        known = self._texts.setdefault(name, [])
        if text not in known and len(known) < MOST_WARNINGS:
            known.append(text)
            log.warning("experiment %s: %s", name, text)

    def of(self, name: str) -> tuple[str, ...]:
        """All of one experiment, in the order in which they were found."""
        return tuple(self._texts.get(name, ()))
