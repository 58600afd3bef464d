"""Units: who or what is served, such as a user, and the pseudonym under which a unit is kept."""

from __future__ import annotations

from hashlib import sha256

# What clients send when they have no user. Hashed, they would all be one unit.
PLACEHOLDERS = frozenset(
    ("null", "none", "nil", "undefined", "nan", "n/a", "unknown", "anonymous", "[object object]")
)
SEPARATOR = "\x1f"  # ASCII unit separator: no salt may hold it, so salt and unit cannot run together
UNIT_SALT = "lora-router/unit"


def unit_hash(unit: str) -> str:
    """The pseudonym under which a unit is kept: 128 bits of SHA-256(UNIT_SALT, separator, unit), hex.

    It is the same in every experiment and on every server, so an outcome can be recorded of a unit anywhere,
    and a unit's past can adjust its present. It hides a unit from a reader of the database, not from one
    who has a list of all units to try.
    """
    return salted_digest(UNIT_SALT, unit)[:16].hex()


def salted_digest(salt: str, unit: str) -> bytes:
    """SHA-256 of salt, separator and unit."""
    return sha256(f"{salt}{SEPARATOR}{unit}".encode("utf-8", "surrogatepass")).digest()


def fraction(salt: str, unit: str) -> float:
    """The first 53 bits of SHA-256(salt, separator, unit), as a multiple of 2**-53.

    53 bits are what a double holds exactly: 64 bits could be rounded up to 1.0, and differently elsewhere.
    """
    return (int.from_bytes(salted_digest(salt, unit)[:8], "big") >> 11) / (1 << 53)


def is_missing(unit: str) -> bool:
    """Whether a unit is empty, or a word by which clients say that they have none."""
    bare = unit.strip()
    return not bare or bare.casefold() in PLACEHOLDERS
