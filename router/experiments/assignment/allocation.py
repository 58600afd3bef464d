"""Who takes part in an experiment, and in which arm.

Holdout, namespace, enrolment and variant hash the unit with salts of their own, so none of them tells
anything about another: raising the enrolment share keeps everybody in the arm they have.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate

from router.errors import FieldViolation, InvalidRequest
from router.experiments.assignment.hashing import SEPARATOR, fraction
from router.experiments.assignment.units import is_missing


class Reason(StrEnum):
    """Why a unit takes no part."""

    UNIT_MISSING = "unit_missing"
    HOLDOUT = "holdout"
    OTHER_EXPERIMENT = "other_experiment"
    NOT_ENROLLED = "not_enrolled"


@dataclass(frozen=True, slots=True)
class Arm:
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

    reason: Reason


@dataclass(frozen=True, slots=True)
class Salts:
    """Texts that make hashes independent. Holdout's and namespace's are shared by many experiments."""

    enrolment: str
    variant: str
    namespace: str = ""
    holdout: str = ""

    @staticmethod
    def fresh(namespace: str = "", holdout: str = "") -> Salts:
        """Salts of a new experiment, or of a new phase: nothing carries over from the last one."""
        return Salts(secrets.token_hex(16), secrets.token_hex(16), namespace, holdout)


@dataclass(frozen=True)
class Allocation:
    """How units are divided. Raises InvalidRequest naming every field that is wrong.

    `slot` is the part [from, to) of the namespace that this experiment has; `enrolment` the share of it
    that takes part; `holdout` the share of all units that takes part in no experiment.
    """

    salts: Salts
    arms: tuple[Arm, ...]
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
            return NotAssigned(Reason.UNIT_MISSING)
        if self.holdout and fraction(self.salts.holdout, unit) < self.holdout:
            return NotAssigned(Reason.HOLDOUT)
        if self.slot != (0.0, 1.0):
            low, high = self.slot
            if not low <= fraction(self.salts.namespace, unit) < high:
                return NotAssigned(Reason.OTHER_EXPERIMENT)
        if fraction(self.salts.enrolment, unit) >= self.enrolment:
            return NotAssigned(Reason.NOT_ENROLLED)
        place = fraction(self.salts.variant, unit)
        arm = self.arms[sum(place >= bound for bound in self._bounds)]
        return Assigned(arm.name, arm.weight)


def _bad_arms(arms: tuple[Arm, ...]) -> list[FieldViolation]:
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


def _bad_shares(allocation: Allocation) -> list[FieldViolation]:
    found = []
    low, high = allocation.slot
    if not 0 <= allocation.enrolment <= 1:
        found.append(FieldViolation("enrolment", f"must be within 0 and 1, got {allocation.enrolment}"))
    if not 0 <= allocation.holdout < 1:
        found.append(FieldViolation("holdout", f"must be 0 or above and below 1, got {allocation.holdout}"))
    if not 0 <= low < high <= 1:
        found.append(FieldViolation("slot", f"must be a part of [0, 1), got [{low}, {high})"))
    return found


def _bad_salts(allocation: Allocation) -> list[FieldViolation]:
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
