"""Hashes of units: fractions that decide who takes part, and pseudonyms."""

from __future__ import annotations

from hashlib import sha256

SEPARATOR = "\x1f"  # ASCII unit separator: no salt may hold it, so salt and unit cannot run together
UNIT_SALT = "lora-router/unit"


def fraction(salt: str, unit: str) -> float:
    """The first 53 bits of SHA-256(salt, separator, unit), as a multiple of 2**-53.

    53 bits are what a double holds exactly: 64 bits could be rounded up to 1.0, and differently elsewhere.
    """
    return (int.from_bytes(_digest(salt, unit)[:8], "big") >> 11) / (1 << 53)


def unit_hash(unit: str) -> str:
    """The pseudonym under which a unit is kept: 128 bits of SHA-256(UNIT_SALT, separator, unit), hex.

    It is the same in every experiment and on every server, so an outcome can be recorded of a unit anywhere,
    and a unit's past can adjust its present. It hides a unit from a reader of the database, not from one
    who has a list of all units to try.
    """
    return _digest(UNIT_SALT, unit)[:16].hex()


def _digest(salt: str, unit: str) -> bytes:
    return sha256(f"{salt}{SEPARATOR}{unit}".encode("utf-8", "surrogatepass")).digest()
