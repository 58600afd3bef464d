"""What is no unit: nothing at all, a client's word for nothing, or the id of a single request."""

from __future__ import annotations

import re

# What clients send when they have no user. Hashed, they would put all such traffic into one arm.
PLACEHOLDERS = frozenset(
    ("null", "none", "nil", "undefined", "nan", "n/a", "unknown", "anonymous", "[object object]")
)
RECENT_SECONDS = 600.0
_PREFIX = re.compile(r"(req|request|resp|response|trace|span|corr|chatcmpl|cmpl|msg)[-_:.]\S+", re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}", re.IGNORECASE)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GREGORIAN = 0x01B21DD213814000  # 100 ns ticks from 1582-10-15 to 1970-01-01, RFC 9562 section 5.1


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


def never_repeats(exposures: int, units: int, at_least: int = 1000, share: float = 0.99) -> bool:
    """Whether nearly every exposure brought a new unit, as request ids do and users do not."""
    return exposures >= at_least and units >= share * exposures


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
