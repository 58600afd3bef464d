"""Which arm a unit gets, and which arm of which experiment a request has.

The arm is the same for ever, computed from hashes alone, in any language. A request is assigned from a
snapshot, without a database and without waiting.

Holdout, namespace, enrolment and variant hash the unit with salts of their own, so none of them tells
anything about another: raising the enrolment share keeps everybody in the arm they have. A unit is a number
in [0, 1), or a pseudonym, by SHA-256 of salt and unit. What is no unit is recognised: nothing at all, a
client's word for nothing, or the id of a single request.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from itertools import accumulate

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.model import BASE, ArmSpec, Experiment, Lifecycle, Mode, Spec
from router.ports import Place
from router.types import AdapterRef, Decision, Request
from router.units import SEPARATOR, fraction, is_missing, unit_hash

ENOUGH_EXPOSURES, NEARLY_ALL = 1000, 0.99  # exposures before anything is said of them, share of new units


class NotAssignedReason(StrEnum):
    """Why a unit takes no part."""

    UNIT_MISSING = "unit_missing"
    HOLDOUT = "holdout"
    OTHER_EXPERIMENT = "other_experiment"
    NOT_ENROLLED = "not_enrolled"


@dataclass(frozen=True, slots=True)
class WeightedArm:
    """One arm and its share of the enrolled units."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Assigned:
    """The arm of a unit, and how likely an enrolled unit was to get it."""

    arm: str
    propensity: float


@dataclass(frozen=True, slots=True)
class NotAssigned:
    """The unit takes no part."""

    reason: NotAssignedReason


@dataclass(frozen=True, slots=True)
class AssignmentSalts:
    """Texts that make hashes independent. Holdout's and namespace's are shared by many experiments."""

    enrolment: str
    variant: str
    namespace: str = ""
    holdout: str = ""

    @staticmethod
    def fresh() -> AssignmentSalts:
        """Those of a new phase: nothing carries over from the last one."""
        return AssignmentSalts(secrets.token_hex(16), secrets.token_hex(16))


@dataclass(frozen=True)
class UnitAllocation:
    """How units are divided. Raises InvalidRequest naming every field that is wrong.

    `slot` is the part [from, to) of the namespace that this experiment has; `enrolment` the share of it
    that takes part; `holdout` the share of all units that takes part in no experiment.
    """

    salts: AssignmentSalts
    arms: tuple[WeightedArm, ...]
    enrolment: float = 1.0
    slot: tuple[float, float] = (0.0, 1.0)
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if found := [*_bad_arms(self.arms), *_bad_shares(self), *_bad_salts(self)]:
            raise InvalidRequest(found)

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        return tuple(accumulate(arm.weight for arm in self.arms[:-1]))

    def assign(self, unit: str | None) -> Assigned | NotAssigned:
        """The arm of `unit`, or why it has none. A missing unit is never enrolled."""
        if unit is None or is_missing(unit):
            return NotAssigned(NotAssignedReason.UNIT_MISSING)
        if self.holds_out(unit):
            return NotAssigned(NotAssignedReason.HOLDOUT)
        if self.slot != (0.0, 1.0):
            low, high = self.slot
            if not low <= fraction(self.salts.namespace, unit) < high:
                return NotAssigned(NotAssignedReason.OTHER_EXPERIMENT)
        if fraction(self.salts.enrolment, unit) >= self.enrolment:
            return NotAssigned(NotAssignedReason.NOT_ENROLLED)
        place = fraction(self.salts.variant, unit)
        arm = self.arms[sum(place >= bound for bound in self._bounds)]
        return Assigned(arm.name, arm.weight)

    def holds_out(self, unit: str) -> bool:
        """Whether a unit takes part in no experiment. One that is missing is not kept out."""
        return (
            bool(self.holdout) and not is_missing(unit) and fraction(self.salts.holdout, unit) < self.holdout
        )


def _bad_arms(arms: tuple[WeightedArm, ...]) -> list[FieldViolation]:
    found = [
        FieldViolation(f"arms[{i}].weight", f"must be above 0 and below 1, got {arm.weight}")
        for i, arm in enumerate(arms)
        if not 0 < arm.weight < 1
    ]
    names = [arm.name for arm in arms]
    if len(arms) < 2:
        found.append(FieldViolation("arms", "an experiment needs two arms or more"))
    elif not found and not math.isclose(total := math.fsum(a.weight for a in arms), 1, abs_tol=1e-9):
        found.append(FieldViolation("arms", f"weights must sum to 1, they sum to {total:g}"))
    if len(set(names)) < len(names) or not all(names):
        found.append(FieldViolation("arms", "every arm needs a name of its own"))
    return found


def _bad_shares(allocation: UnitAllocation) -> list[FieldViolation]:
    found = []
    low, high = allocation.slot
    if not 0 <= allocation.enrolment <= 1:
        found.append(FieldViolation("enrolment", f"must be within 0 and 1, got {allocation.enrolment}"))
    if not 0 <= allocation.holdout < 1:
        found.append(FieldViolation("holdout", f"must be 0 or above and below 1, got {allocation.holdout}"))
    if not 0 <= low < high <= 1:
        found.append(FieldViolation("slot", f"must be a part of [0, 1), got [{low}, {high})"))
    return found


def _bad_salts(allocation: UnitAllocation) -> list[FieldViolation]:
    salts = allocation.salts
    used = {"salts.enrolment": salts.enrolment, "salts.variant": salts.variant}
    if allocation.slot != (0.0, 1.0):
        used["salts.namespace"] = salts.namespace
    if allocation.holdout:
        used["salts.holdout"] = salts.holdout
    found = [
        FieldViolation(name, "must be a text without the character U+001F")
        for name, salt in used.items()
        if not salt or SEPARATOR in salt
    ]
    if len(set(used.values())) < len(used):
        found.append(FieldViolation("salts", "must all differ: equal salts make one choice decide another"))
    return found


def never_repeats(exposures: int, units: int) -> bool:
    """Whether nearly every exposure brought a new unit, as request ids do and users do not."""
    return exposures >= ENOUGH_EXPOSURES and units >= NEARLY_ALL * exposures


log = logging.getLogger(__name__)
MOST_WARNINGS = 8  # of one experiment


@dataclass(frozen=True, slots=True)
class ArmAssignment:
    """The arm of a request. `unit` is the unit's hash, `propensity` how likely an enrolled unit got it."""

    running: RunningExperiment
    arm: ArmSpec
    propensity: float
    unit: str

    @property
    def versions(self) -> tuple[AdapterRef | None, ...]:
        """As `ports.Assignment`: the arm's version, then control's."""
        return (self.arm.adapter, self.running.control.adapter)


@dataclass(frozen=True, slots=True)
class Outside:
    """A request that an experiment is about, but that takes no part, and why."""

    experiment: str
    reason: NotAssignedReason


class Assigner:
    """Order of decisions: eligibility, holdout, namespace, enrolment, variant.

    A request that names a version takes no part: it gets that version. One that names an adapter takes part
    in experiments on it, since the default version is what it asked for.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._warned = Warned()

    def use(self, running: Iterable[RunningExperiment]) -> None:
        """From now on these."""
        found = list(running)
        self._warned.use(found)
        self.snapshot = snapshot_of(found)
        for name, text in _other_units(self.snapshot):
            self.suspect(name, text)

    def assign(self, request: Request, decision: Decision) -> ArmAssignment | Outside | None:
        """The arm among the experiments on the route of `decision`; None if there is nothing to say."""
        snapshot = self.snapshot
        if not snapshot.split or "/versions/" in request.routing.adapter:
            return None
        route = decision.adapter.name if decision.adapter else BASE
        return self._first(snapshot.split.get(route, ()), request)

    def holdouts(self, request: Request, route: str) -> tuple[ArmAssignment, ...]:
        """The unit's side in every experiment on the holdout, of a request that another one is about.

        `route` is the one before an arm took its place. Whether the unit is enrolled elsewhere makes no
        difference: sides are compared as they were drawn.
        """
        snapshot = self.snapshot
        if not snapshot.holdouts or "/versions/" in request.routing.adapter:
            return ()
        labels = {one.spec.unit_label for one in snapshot.split.get(route, ())}
        found = []
        for one in snapshot.holdouts:
            unit = unit_of(one, request)
            if one.spec.unit_label in labels and not is_missing(unit):
                self._look(one, unit, request)
                found.append(_side(one, unit))
        return tuple(found)

    def _first(
        self, candidates: Iterable[RunningExperiment], request: Request
    ) -> ArmAssignment | Outside | None:
        outside = None
        for one in candidates:
            unit = unit_of(one, request)
            found = one.allocation.assign(unit)
            if isinstance(found, Assigned):
                self._look(one, unit, request)
                return ArmAssignment(one, one.arms[found.arm], found.propensity, unit_hash(unit))
            outside = outside or _outside(one, found)
        return outside

    def places(self, running: Iterable[RunningExperiment], request: Request) -> list[Place]:
        """Where the request's unit stands in each."""
        return [place_of(one, request) for one in running]

    def _look(self, one: RunningExperiment, unit: str, request: Request) -> None:
        if request.caller_id and unit == request.caller_id:
            label = f"label {one.spec.unit_label!r}" if one.spec.unit_label else "routing.unit"
            self.suspect(
                one.name,
                f"a unit ({label}) is the id of this request: units must be the same at every request",
            )

    def suspect(self, name: str, text: str) -> None:
        """Warn about an experiment: once in the log, and in `warnings` until its next phase."""
        self._warned.add(name, text)

    def warnings(self, name: str) -> tuple[str, ...]:
        """What deserves a second look."""
        return self._warned.of(name)


def unit_of(one: RunningExperiment, request: Request) -> str:
    """The unit as the request has it; empty if it has none."""
    label = one.spec.unit_label
    return request.labels.get(label, "") if label else request.routing.unit


def _side(one: RunningExperiment, unit: str) -> ArmAssignment:
    """Control for a unit that the server keeps out of all experiments, else the other arm."""
    share = one.allocation.holdout
    held = fraction(one.allocation.salts.holdout, unit) < share
    arm = next(arm for arm in one.arms.values() if (arm.name == one.spec.control) is held)
    return ArmAssignment(one, arm, share if held else 1 - share, unit_hash(unit))


def place_of(one: RunningExperiment, request: Request) -> Place:
    """Where the request's unit stands in one experiment."""
    unit, place = unit_of(one, request), Place(one.name, one.phase, one.spec.unit_label)
    if one.of_holdout:
        if is_missing(unit):
            return replace(place, outside=NotAssignedReason.UNIT_MISSING.value)
        side = _side(one, unit)
        arm, share = side.arm, side.propensity
    else:
        found = one.allocation.assign(unit)
        if isinstance(found, NotAssigned):
            return replace(place, outside=found.reason.value)
        arm, share = one.arms[found.arm], found.propensity
    answers = "" if one.of_holdout else arm.adapter.resource if arm.adapter else BASE
    return replace(place, arm=arm.name, control=arm is one.control, share=share, answers=answers)


def _other_units(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """What experiments on the holdout cannot tell of: the holdout of one unit is none of another."""
    for one in snapshot.holdouts:
        for other in snapshot.all():
            if other.assigns and other.spec.unit_label != one.spec.unit_label:
                text = f"the unit of {other.name} is another: requests of that experiment are not counted"
                yield one.name, text


def _outside(one: RunningExperiment, found: NotAssigned) -> Outside | None:
    return Outside(one.name, found.reason) if found.reason is NotAssignedReason.UNIT_MISSING else None


@dataclass(frozen=True, slots=True)
class RunningExperiment:
    """One running experiment."""

    name: str
    phase: int
    spec: Spec
    allocation: UnitAllocation
    arms: Mapping[str, ArmSpec]

    @property
    def control(self) -> ArmSpec:
        """The arm that the others are compared with."""
        return self.arms[self.spec.control]

    @property
    def of_holdout(self) -> bool:
        """Whether it compares the server's holdout with everybody else."""
        return self.spec.mode is Mode.HOLDOUT

    @property
    def assigns(self) -> bool:
        """Whether its units are answered by their arms."""
        return self.spec.mode is Mode.SPLIT


@dataclass(frozen=True, slots=True)
class Snapshot:
    """By route, in the order of their names. False if nothing runs."""

    split: Mapping[str, tuple[RunningExperiment, ...]] = field(default_factory=dict)
    shadows: Mapping[str, tuple[RunningExperiment, ...]] = field(default_factory=dict)
    holdouts: tuple[RunningExperiment, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.split or self.shadows or self.holdouts)

    def all(self) -> tuple[RunningExperiment, ...]:
        """Every running experiment."""
        by_route = (*self.split.values(), *self.shadows.values(), self.holdouts)
        return tuple(sorted((r for some in by_route for r in some), key=lambda r: r.name))


def snapshot_of(running: Iterable[RunningExperiment]) -> Snapshot:
    """Sort them by what they do to a request."""
    split: dict[str, tuple[RunningExperiment, ...]] = {}
    shadows: dict[str, tuple[RunningExperiment, ...]] = {}
    holdouts: tuple[RunningExperiment, ...] = ()
    for one in sorted(running, key=lambda r: r.name):
        if one.of_holdout:
            holdouts += (one,)
        else:
            group = shadows if one.spec.mode is Mode.SHADOW else split
            group[one.spec.route] = (*group.get(one.spec.route, ()), one)
    return Snapshot(split, shadows, holdouts)


def running_of(
    experiment: Experiment, salt: Callable[[str], str], holdout: float
) -> RunningExperiment | None:
    """The experiment ready to assign, if it runs; `salt` is the store's.

    One that cannot be assigned by (a database that somebody wrote to by hand) is left out, and logged. One on
    the holdout is left out while it has a `holdout_problem`.
    """
    phase, spec = experiment.phase, experiment.spec
    if experiment.state is not Lifecycle.RUNNING or phase is None or holdout_problem(spec, holdout):
        return None
    shared = salt(f"namespace:{spec.namespace}") if spec.namespace else ""
    salts = AssignmentSalts(
        phase.enrolment_salt, phase.variant_salt, shared, salt("holdout") if holdout else ""
    )
    arms = tuple(WeightedArm(arm.name, arm.weight) for arm in spec.arms)
    try:
        allocation = UnitAllocation(salts, arms, spec.enrolment, spec.slot, holdout)
    except InvalidRequest as error:
        log.error("experiment %s is not served: %s", experiment.name, error.message)
        return None
    arms_by_name = {arm.name: arm for arm in spec.arms}
    return RunningExperiment(experiment.name, phase.number, spec, allocation, arms_by_name)


def holdout_problem(spec: Spec, holdout: float) -> str:
    """Why an experiment on the holdout is not served where the server's is this share; empty for others."""
    if spec.mode is not Mode.HOLDOUT:
        return ""
    if not holdout:
        return "the server has no holdout: set experiments.holdout"
    shares = {arm.name: arm.weight for arm in spec.arms}
    control = shares.pop(spec.control, 0.0)
    if len(shares) == 1 and math.isclose(control, holdout, abs_tol=1e-9):
        return ""
    return (
        f"the weight of {spec.control} is {control:g}, and the server keeps {holdout:g} of all units out: "
        "not served until that weight and experiments.holdout are equal"
    )


class Warned:
    """Texts by experiment. Those of one that has stopped stay, for readers of its report."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._phases: dict[str, int] = {}

    def use(self, running: Iterable[RunningExperiment]) -> None:
        """Forget the warnings of an earlier phase."""
        for one in running:
            if self._phases.get(one.name) != one.phase:
                self._phases[one.name] = one.phase
                self._texts.pop(one.name, None)

    def add(self, name: str, text: str) -> None:
        """Warn, unless it was done. `text` is the same for the same fault, so without numbers that grow."""
        known = self._texts.setdefault(name, [])
        if text not in known and len(known) < MOST_WARNINGS:
            known.append(text)
            log.warning("experiment %s: %s", name, text)

    def of(self, name: str) -> tuple[str, ...]:
        """All of one experiment, in the order in which they were found."""
        return tuple(self._texts.get(name, ()))
