"""Which arm a unit gets: the same for ever, computed from hashes alone, in any language.

Holdout, namespace, enrolment and variant hash the unit with salts of their own, so none of them tells
anything about another: raising the enrolment share keeps everybody in the arm they have. A unit is a number
in [0, 1), or a pseudonym, by SHA-256 of salt and unit. What is no unit is told apart: nothing at all, a
client's word for nothing, or the id of a single request.
"""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from itertools import accumulate

from router.errors import FieldViolation, InvalidRequest

# What clients send when they have no user. Hashed, they would put all such traffic into one arm.
PLACEHOLDERS = frozenset(
    ("null", "none", "nil", "undefined", "nan", "n/a", "unknown", "anonymous", "[object object]")
)
RECENT_SECONDS = 600.0
TOLD_APART, NEARLY_ALL = 1000, 0.99  # exposures before anything is said of them, share of new units
_PREFIX = re.compile(r"(req|request|resp|response|trace|span|corr|chatcmpl|cmpl|msg)[-_:.]\S+", re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}", re.IGNORECASE)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GREGORIAN = 0x01B21DD213814000  # 100 ns ticks from 1582-10-15 to 1970-01-01, RFC 9562 section 5.1
SEPARATOR = "\x1f"  # ASCII unit separator: no salt may hold it, so salt and unit cannot run together
UNIT_SALT = "lora-router/unit"


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
    def fresh() -> Salts:
        """Those of a new phase: nothing carries over from the last one."""
        return Salts(secrets.token_hex(16), secrets.token_hex(16))


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


def fraction(salt: str, unit: str) -> float:
    """The first 53 bits of SHA-256(salt, separator, unit), as a multiple of 2**-53.

    53 bits are what a double holds exactly: 64 bits could be rounded up to 1.0, and differently elsewhere.
    """
    return (int.from_bytes(_digest(salt, unit)[:8], "big") >> 11) / (1 << 53)


def unit_hash(unit: str) -> str:
    """The pseudonym under which a unit is kept: 128 bits of SHA-256(UNIT_SALT, separator, unit), hex.

    It is the same in every experiment and on every server, so an outcome can be told of a unit anywhere,
    and a unit's past can adjust its present. It hides a unit from a reader of the database, not from one
    who has a list of all units to try.
    """
    return _digest(UNIT_SALT, unit)[:16].hex()


def _digest(salt: str, unit: str) -> bytes:
    return sha256(f"{salt}{SEPARATOR}{unit}".encode("utf-8", "surrogatepass")).digest()


def is_missing(unit: str) -> bool:
    """Whether a unit is empty, or a word by which clients say that they have none."""
    bare = unit.strip()
    return not bare or bare.casefold() in PLACEHOLDERS


def request_id_like(unit: str, request_id: str = "", now: float | None = None) -> str | None:
    """Why a unit looks like the id of one request, or None if it does not.

    A random UUID says nothing, many users have one; but an id that carries a time (UUID 1 and 7, ULID,
    milliseconds) within ten minutes of `now`, in seconds since 1970, was made for this request.
    """
    if request_id and unit == request_id:
        return "is the id of this request"
    if _PREFIX.fullmatch(unit) or _TRACEPARENT.fullmatch(unit):
        return "has the form of a request or trace id"
    made = _made_at(unit)
    if now is not None and made is not None and abs(made - now) <= RECENT_SECONDS:
        return "carries the time of this request"
    return None


def never_repeats(exposures: int, units: int) -> bool:
    """Whether nearly every exposure brought a new unit, as request ids do and users do not."""
    return exposures >= TOLD_APART and units >= NEARLY_ALL * exposures


def _made_at(unit: str) -> float | None:
    """Seconds since 1970 that an id carries, if it does."""
    if _UUID.fullmatch(unit):
        return _uuid_time(int(unit.replace("-", ""), 16))
    if _ULID.fullmatch(unit):
        ticks = 0
        for letter in unit[:10].upper():
            ticks = ticks * 32 + _CROCKFORD.index(letter)
        return ticks / 1e3
    return int(unit) / 1e3 if re.fullmatch(r"[0-9]{13}", unit) else None


def _uuid_time(number: int) -> float | None:
    version = number >> 76 & 15
    if version == 7:
        return (number >> 80) / 1e3
    if version == 1:
        low, middle, high = number >> 96, number >> 80 & 0xFFFF, number >> 64 & 0xFFF
        return ((high << 48 | middle << 32 | low) - _GREGORIAN) / 1e7
    return None
